// One answer in the conversation: title, reasoning (folded), Markdown, errors and figures.
import { MarkdownView } from "./markdown.js";
import { bytes } from "./memory.js";

// Minimum time between two renderings of a growing answer, ms, and its minimum multiple of the time of a rendering. A speed is
// shown if the answer took longer than SHORT seconds.
const INTERVAL = 60, MULTIPLE = 8, SHORT = 0.02;

function element(name, className, text = "") {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return node;
}

// Speed, tokens and bytes of an answer, as text.
export function figures({ usage, seconds }) {
  if (!usage) return "";
  const n = usage.completion_tokens, share = usage.kv_bytes_full ? Math.round(100 * usage.kv_bytes / usage.kv_bytes_full) : 100;
  const speed = seconds > SHORT && n > 1 ? `${((n - 1) / seconds).toFixed(1)} tok/s · ` : "";
  return `${speed}${usage.prompt_tokens} + ${n} tokens · cache ${bytes(usage.kv_bytes)}, ${share}% of a whole bf16 cache (${bytes(usage.kv_bytes_full)})`;
}

export class AnswerView {
  constructor(answer) {
    this.answer = answer;
    this.box = element("article", "answer");
    this.box.setAttribute("aria-label", `Answer: ${answer.title}`);
    this.thinking = element("details", "thinking");
    this.thinking.append(element("summary", "", "Thinking"), element("div", ""));
    this.thinking.hidden = true;
    this.body = element("div", "markdown");
    this.error = element("p", "error");
    this.error.hidden = true;
    this.numbers = element("p", "figures");
    this.box.append(element("h3", "", answer.title), this.thinking, this.body, this.error, this.numbers);
    this.view = new MarkdownView(this.body);
    this.timer = 0;
  }

  // Shows the growing answer at the next opportunity. `shown` runs afterwards.
  grow(shown) {
    this.box.setAttribute("aria-busy", "true");
    if (this.timer) return;
    this.timer = setTimeout(() => requestAnimationFrame(() => {
      const start = performance.now();
      this.timer = 0;
      if (this.finished) return;
      this.view.grow(this.answer.text);
      this.#reasoning();
      this.cost = performance.now() - start;
      shown();
    }), Math.max(INTERVAL, MULTIPLE * (this.cost || 0)));
  }

  // Shows the complete answer.
  finish() {
    this.finished = true;
    clearTimeout(this.timer);
    this.box.removeAttribute("aria-busy");
    this.view.finish(this.answer.text);
    this.#reasoning();
    this.error.textContent = this.answer.error || "";
    this.error.hidden = !this.answer.error;
    this.numbers.textContent = [this.answer.stopped ? "stopped" : "", figures(this.answer)].filter(Boolean).join(" · ");
  }

  #reasoning() {
    const text = this.answer.thinking || "";
    this.thinking.hidden = !text;
    if (this.thinking.lastChild.textContent.length !== text.length) this.thinking.lastChild.textContent = text;
  }
}
