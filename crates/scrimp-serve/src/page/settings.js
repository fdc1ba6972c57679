// Settings of the page. All but the API key are stored in the browser.
import { setKey } from "./api.js";

const STORED = ["shrink", "budget", "policy", "format", "compare", "system", "temperature", "tokens", "think", "theme"];
const DEFAULTS = { budget: 25, temperature: 0.7, tokens: 1024 };
const WHOLE = { kv_format: "bf16", kv_policy: "full" };
const field = id => document.getElementById(id);

function read(id) { const input = field(id); return input.type === "checkbox" ? input.checked : input.value; }

// Reads the stored settings. `onChange` runs after each change, `onKey` after a change of the key.
export function start(onChange, onKey) {
  let stored = {};
  try { stored = JSON.parse(localStorage.getItem("settings")) || {}; } catch { /* damaged or forbidden: the defaults */ }
  for (const id of STORED) {
    const value = stored[id] ?? DEFAULTS[id], input = field(id);
    if (input.type === "checkbox") input.checked = value === true; else if (value !== undefined) input.value = value;
  }
  const changed = () => {
    field("custom").hidden = read("shrink") !== "custom";
    document.documentElement.dataset.theme = read("theme");
    try { localStorage.setItem("settings", JSON.stringify(Object.fromEntries(STORED.map(id => [id, read(id)])))); } catch { /* not stored */ }
    onChange();
  };
  field("settings").addEventListener("input", event => { if (event.target.id !== "key") changed(); });
  field("key").addEventListener("change", () => { setKey(read("key")); onKey(); });
  changed();
}

// Whether the next question is also answered with the whole cache.
export const compares = () => read("compare");

// The fields of a request that describe its KV cache, and their description.
function cache() {
  const shrink = read("shrink"), format = read("format"), policy = read("policy"), budget = Number(read("budget")) / 100;
  if (shrink === "whole") return { fields: WHOLE, title: "Whole cache" };
  if (shrink === "custom") {
    const fields = { ...(format ? { kv_format: format } : {}) };
    const title = [];
    if (budget > 0 && budget < 1) {
      Object.assign(fields, { kv_budget: budget, ...(policy ? { kv_policy: policy } : {}) });
      title.push(`${Math.round(100 * budget)}% of the prompt tokens`, ...(policy ? [policy] : []));
    } else title.push("All tokens");
    return { fields, title: [...title, ...(format ? [format] : [])].join(", ") };
  }
  if (shrink) return { fields: { kv_shrink: Number(shrink) }, title: `Cache ${shrink} times smaller` };
  return { fields: {}, title: "The server's default cache" };
}

// The answers that a question gets: each has a title and fields of a request.
export function variants() {
  const chosen = cache();
  return compares() ? [chosen, { fields: WHOLE, title: "Whole cache" }] : [chosen];
}

// The other fields of a request.
export function request() {
  const temperature = Number(read("temperature")), tokens = Number(read("tokens")), think = read("think");
  return {
    temperature: Number.isFinite(temperature) && read("temperature") !== "" ? temperature : DEFAULTS.temperature,
    max_tokens: tokens >= 1 ? Math.floor(tokens) : DEFAULTS.tokens,
    ...(think ? { enable_thinking: think === "on" } : {}),
  };
}

export const systemPrompt = () => read("system").trim();
