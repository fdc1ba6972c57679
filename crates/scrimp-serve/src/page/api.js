// Requests to the server. Paths are relative, so that the page works behind a proxy with a path of its own.
let key = "";

export function setKey(value) { key = value.trim(); }

function headers() {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function problem(response) {
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message || `the server answered with status ${response.status}`);
}

async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await problem(response);
  return response.json();
}

// All models of the server.
export async function models() { return (await get("v1/models")).data; }

// The holders of memory.
export const memory = () => get("admin");

// Streams an answer. `onDelta` receives pieces of the text and of the reasoning. Returns the usage and the times.
export async function chat(body, signal, onDelta) {
  const request = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request), signal });
  if (!response.ok) throw await problem(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "", usage = null, first = 0, last = 0;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return { usage, seconds: (last - first) / 1000 };
    buffer += value;
    const frames = buffer.split("\n\n");
    buffer = frames.pop();
    for (const frame of frames) {
      const data = frame.replace(/^data: /, "");
      if (!frame.startsWith("data: ") || data === "[DONE]") continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage || usage;
      const delta = chunk.choices?.[0]?.delta;
      if (!delta || !(delta.content || delta.reasoning_content)) continue;
      last = performance.now();
      first ||= last;
      onDelta(delta.content || "", delta.reasoning_content || "");
    }
  }
}
