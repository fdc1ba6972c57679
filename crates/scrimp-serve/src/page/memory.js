// The memory meter: the weights of the chosen model, the cache of the chat now and if it were whole, and all holders. While an
// answer is generated, the caches are those of all running requests of the model.
import * as api from "./api.js";

const INTERVAL = 1000;
const field = id => document.getElementById(id);
let last = null, timer = null, usage = null, model = () => "";

// A size with three digits.
export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (n >= 1000 && i + 1 < units.length) { n /= 1024; i++; }
  return `${n >= 100 || i === 0 ? n.toFixed(0) : n.toPrecision(3)} ${units[i]}`;
}

function rows(list, entries) {
  list.replaceChildren(...entries.flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
}

function show() {
  if (!last) return;
  const used = last.models.find(entry => entry.names.includes(model())) || last.models.find(entry => entry.task === "generate");
  const live = timer !== null && used?.kv?.request_bytes > 0;
  const weights = used?.weight_bytes || 0;
  const now = (live ? used.kv.request_bytes : usage?.kv_bytes) || 0, whole = (live ? used.kv.whole_bytes : usage?.kv_bytes_full) || 0;
  field("meter").hidden = !used;
  if (used) {
    const top = Math.max(weights + Math.max(now, whole), 1), part = n => `${100 * n / top}%`;
    for (const bar of document.querySelectorAll(".meter .weights")) bar.style.width = part(weights);
    field("bar-now").style.width = part(now);
    field("bar-whole").style.width = part(whole);
    field("meter-now").textContent = bytes(weights + now);
    field("meter-whole").textContent = bytes(weights + whole);
    rows(field("cache-of-chat"), [["Weights", bytes(weights)], [live ? "Caches of running requests" : "Cache of this chat", bytes(now)], ["Cache if it were whole", bytes(whole)]]);
  }
  const holders = [];
  for (const entry of last.models) {
    const name = entry.names[0];
    holders.push([`${name}: ${entry.loaded ? "weights" : "not loaded"}`, bytes(entry.loaded ? entry.weight_bytes : 0)]);
    if (entry.draft_bytes) holders.push([`${name}: draft model, with the limit of its caches`, bytes(entry.draft_bytes)]);
    if (!entry.kv) continue;
    holders.push([`${name}: caches of requests`, bytes(entry.kv.request_bytes)]);
    holders.push([`${name}: ${entry.kv.prefixes} kept prefixes`, bytes(entry.kv.prefix_bytes)]);
    if (entry.kv.state_bytes) holders.push([`${name}: recurrent states of requests`, bytes(entry.kv.state_bytes)]);
    if (entry.kv.stored_prefix_bytes) holders.push([`${name}: prefixes on disk`, bytes(entry.kv.stored_prefix_bytes)]);
  }
  if (last.process.rss_bytes) holders.push(["The process", bytes(last.process.rss_bytes)]);
  if (last.memory_limit_bytes) holders.push(["Limit", bytes(last.memory_limit_bytes)]);
  rows(field("holders").querySelector("dl"), holders);
}

// Reads the holders once.
export async function update() {
  try { last = await api.memory(); } catch { return; }
  show();
}

// The usage of the last answer of the chat, or null.
export function setUsage(value) { usage = value; show(); }

// Reads the holders at intervals while an answer is generated.
export function watch(isRunning) {
  clearInterval(timer);
  timer = isRunning ? setInterval(update, INTERVAL) : null;
  if (!isRunning) update();
}

export function start(chosenModel) { model = chosenModel; update(); }
