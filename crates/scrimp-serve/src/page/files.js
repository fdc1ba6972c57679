// Text files as context of a question: chosen, dropped or pasted.
const MAX_BYTES = 1 << 20;
const field = id => document.getElementById(id);
let attached = [];

// The text of a file; throws if it is too large or no text.
async function read(file) {
  if (file.size > MAX_BYTES) throw new Error(`${file.name} has more than 1 MiB`);
  const bytes = await file.arrayBuffer();
  let text;
  try { text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); } catch { throw new Error(`${file.name} is not a text in UTF-8`); }
  if (text.includes("\0")) throw new Error(`${file.name} is not a text`);
  return { name: file.name, text };
}

function show() {
  const box = field("files");
  box.hidden = attached.length === 0;
  box.replaceChildren(...attached.map((file, i) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.textContent = `${file.name} ×`;
    chip.setAttribute("aria-label", `Remove ${file.name}`);
    chip.addEventListener("click", () => { attached.splice(i, 1); show(); field("text").focus(); });
    return chip;
  }));
}

async function add(list, report) {
  for (const file of list) {
    try { attached.push(await read(file)); report(`${file.name} is attached`, false); } catch (error) { report(error.message, true); }
  }
  show();
}

// The attached files; none are attached afterwards.
export function take() {
  const files = attached;
  attached = [];
  show();
  return files;
}

export function set(files) { attached = [...files]; show(); }

export const any = () => attached.length > 0;

// A question with its files as a message to the model.
export function message(question, files = []) {
  return [...files.map(file => {
    // A fence that the text does not contain.
    const longest = Math.max(2, ...[...file.text.matchAll(/`{3,}/g)].map(match => match[0].length));
    const fence = "`".repeat(longest + 1);
    return `File ${file.name}:\n${fence}\n${file.text}\n${fence}\n`;
  }), question].join("\n");
}

// Connects the button, the drop area and the clipboard. `report` receives messages.
export function start(report) {
  const main = field("main");
  field("attach").addEventListener("click", () => field("file").click());
  field("file").addEventListener("change", async event => { await add(event.target.files, report); event.target.value = ""; });
  const carriesFiles = event => event.dataTransfer?.types.includes("Files");
  main.addEventListener("dragover", event => { if (carriesFiles(event)) { event.preventDefault(); main.classList.add("drop"); } });
  main.addEventListener("dragleave", event => { if (!main.contains(event.relatedTarget)) main.classList.remove("drop"); });
  main.addEventListener("drop", event => {
    main.classList.remove("drop");
    if (carriesFiles(event)) { event.preventDefault(); add(event.dataTransfer.files, report); }
  });
  field("text").addEventListener("paste", event => {
    if (event.clipboardData?.files.length) { event.preventDefault(); add(event.clipboardData.files, report); }
  });
}
