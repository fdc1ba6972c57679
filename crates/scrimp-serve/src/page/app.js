// The page: connects the parts.
import * as api from "./api.js";
import * as files from "./files.js";
import * as history from "./history.js";
import * as memory from "./memory.js";
import * as settings from "./settings.js";
import { Conversation } from "./conversation.js";
import { copy as copyText } from "./clipboard.js";

const field = id => document.getElementById(id);
const announce = text => { field("status").textContent = text; };

const conversation = new Conversation(field("log"), field("empty"), {
  model: () => field("model").value,
  changed: async chat => { if (chat.turns.length && !chat.deleted) await history.put(chat); await listChats(); },
  running: isRunning => {
    field("send").hidden = isRunning;
    field("stop").hidden = !isRunning;
    memory.watch(isRunning);
    if (!isRunning && document.activeElement === document.body) field("text").focus();
  },
  announce,
  usage: memory.setUsage,
  speed: text => { field("live").textContent = text; },
});

// --- chats

function open(chat) {
  conversation.show(chat);
  memory.setUsage(chat.turns.at(-1)?.answers[0]?.usage || null);
  closeSide();
  listChats();
}

function newChat() {
  open(history.fresh());
  field("text").focus();
}

function action(text, label, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  button.textContent = text;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", act);
  return button;
}

async function listChats() {
  const chats = await history.all();
  field("chats").replaceChildren(...chats.map(chat => {
    const item = document.createElement("li"), current = chat.id === conversation.chat.id;
    item.classList.toggle("current", current);
    const title = action(chat.title, `Open ${chat.title}`, () => { if (!current) open(chat); else closeSide(); });
    title.className = "open";
    if (current) title.setAttribute("aria-current", "true");
    const actions = document.createElement("div");
    actions.className = "actions";
    actions.append(
      action("Rename", `Rename ${chat.title}`, () => rename(item, chat)),
      action("Export", `Export ${chat.title}`, () => history.download(`${chat.title.replace(/[^\p{L}\p{N} _-]/gu, "_")}.md`, history.markdown(chat))),
      action("Delete", `Delete ${chat.title}`, () => remove(chat)),
    );
    item.append(title, actions);
    return item;
  }));
}

function rename(item, chat) {
  const input = document.createElement("input");
  input.value = chat.title;
  input.setAttribute("aria-label", "Title of the chat");
  let isOpen = true;
  const close = async save => {
    if (!isOpen) return;
    isOpen = false;
    const title = input.value.trim();
    if (save && title) {
      if (chat.id === conversation.chat.id) conversation.chat.title = title;
      await history.put({ ...chat, title });
    }
    listChats();
  };
  input.addEventListener("keydown", event => {
    if (event.key === "Enter") close(true);
    if (event.key === "Escape") { event.stopPropagation(); close(false); }
  });
  input.addEventListener("blur", () => close(true));
  item.querySelector(".open").replaceWith(input);
  input.focus();
  input.select();
}

async function remove(chat) {
  await history.remove(chat.id);
  announce(`${chat.title} is deleted`);
  if (chat.id === conversation.chat.id) {
    conversation.chat.deleted = true;
    newChat();
  } else listChats();
}

// --- the message field

function send(event) {
  event?.preventDefault();
  const text = field("text").value.trim();
  if ((!text && !files.any()) || conversation.running || field("send").disabled) return;
  field("text").value = "";
  field("model-error").textContent = "";
  conversation.ask(text, files.take());
}

field("ask").addEventListener("submit", send);
field("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  if (event.key === "ArrowUp" && !event.target.value) { event.preventDefault(); conversation.edit(); }
});
if (!CSS.supports("field-sizing", "content")) field("text").addEventListener("input", ({ target }) => {
  target.style.height = "auto";
  target.style.height = `${target.scrollHeight}px`;
});
field("stop").addEventListener("click", () => conversation.stop());
files.start((text, isError) => { announce(text); field("model-error").textContent = isError ? text : ""; });

// Copy buttons of blocks of code.
field("log").addEventListener("click", async event => {
  const copy = event.target.closest?.(".copy");
  if (!copy) return;
  const text = copy.closest(".code").querySelector("code").textContent;
  const done = await copyText(text) ? "Copied" : "Not allowed";
  copy.textContent = done;
  announce(done);
  setTimeout(() => { copy.textContent = "Copy"; }, 1500);
});

// --- shortcuts and dialogs

const shortcuts = {
  KeyN: newChat,
  KeyR: () => conversation.regenerate(),
  KeyS: () => field("settings").showModal(),
  Slash: () => field("shortcuts").showModal(),
};
document.addEventListener("keydown", event => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") { if (conversation.running) conversation.stop(); else closeSide(); }
  if (event.altKey && !event.ctrlKey && !event.metaKey && shortcuts[event.code]) {
    event.preventDefault();
    shortcuts[event.code]();
  }
});
field("open-settings").addEventListener("click", shortcuts.KeyS);
field("open-shortcuts").addEventListener("click", shortcuts.Slash);
field("new").addEventListener("click", newChat);

function closeSide() {
  document.body.classList.remove("side");
  field("menu").setAttribute("aria-expanded", "false");
}
field("menu").addEventListener("click", () => {
  const isOpen = document.body.classList.toggle("side");
  field("menu").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) field("new").focus();
});
field("main").addEventListener("click", closeSide);

// --- start

// A model can have several names, such as its path: the shortest one is listed.
async function shortNames() {
  const groups = await api.memory().then(({ models }) => models.map(model => model.names), () => []);
  return name => groups.every(names => !names.includes(name) || names.every(other => name.length < other.length || other === name));
}

async function connect() {
  const select = field("model"), error = field("model-error");
  let problem = "", chats = [];
  const isSelected = await shortNames();
  try {
    const list = await api.models();
    chats = list.filter(model => model.task === "generate" && isSelected(model.id));
    if (!chats.length) problem = `No chats: this server has no language model, but ${list.map(model => `${model.id} (${model.task})`).join(", ")}`;
  } catch (e) { problem = e instanceof TypeError ? "no answer from the server" : e.message; }
  const chosen = select.value;
  select.replaceChildren(...chats.map(model => new Option(model.id, model.id)));
  if (chats.some(model => model.id === chosen)) select.value = chosen;
  select.disabled = !chats.length;
  error.textContent = problem;
  field("send").disabled = field("text").disabled = !chats.length;
  if (chats.length) field("text").focus();
  memory.update();
}

field("model").addEventListener("change", memory.update);
settings.start(() => {}, connect);
memory.start(() => field("model").value);
const chats = await history.all();
open(chats[0] || history.fresh());
await connect();
document.body.dataset.ready = "true";
