// Chats in the browser's database (IndexedDB). Without a database, as in some private windows, they live until a reload.
const DATABASE = "scrimp", STORE = "chats";
const fallback = new Map();
let opened = null;

function database() {
  opened ||= new Promise(resolve => {
    try {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = request.onblocked = () => resolve(null);
    } catch { resolve(null); }
  });
  return opened;
}

async function run(mode, act) {
  const db = await database();
  if (!db) return null;
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(STORE, mode);
    const request = act(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

// All chats, the last changed one first.
export async function all() {
  const chats = (await run("readonly", store => store.getAll())) || [...fallback.values()];
  return chats.sort((a, b) => b.updated - a.updated);
}

// Stores a chat.
export async function put(chat) {
  fallback.set(chat.id, chat);
  await run("readwrite", store => store.put(chat)).catch(error => console.warn("the chat is not stored:", error));
}

// Deletes a chat.
export async function remove(id) {
  fallback.delete(id);
  await run("readwrite", store => store.delete(id));
}

// A chat without questions.
export function fresh() {
  return { id: crypto.randomUUID?.() || `${Date.now()}-${Math.random()}`, title: "New chat", updated: Date.now(), turns: [] };
}

// A chat as Markdown.
export function markdown(chat) {
  const lines = [`# ${chat.title}`, ""];
  for (const turn of chat.turns) {
    lines.push("## Question", "", turn.question, "");
    if (turn.files?.length) lines.push(`Files: ${turn.files.map(file => file.name).join(", ")}`, "");
    for (const answer of turn.answers) lines.push(`## ${answer.title || "Answer"}`, "", answer.text, "");
  }
  return lines.join("\n");
}

// Saves a text as a file of the user.
export function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/markdown" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
