// The shown chat: its questions and answers, requests to the model, stop, regenerate and edit.
//
// A chat is { id, title, updated, turns }, a turn { question, files, answers }, an answer { title, text, thinking, usage,
// seconds, error, stopped }. With a comparison, a turn has two answers; each continues the answers of its own column.
import * as api from "./api.js";
import * as files from "./files.js";
import * as history from "./history.js";
import * as settings from "./settings.js";
import { AnswerView } from "./answer.js";
import { copy } from "./clipboard.js";

// The conversation follows new text if its end is less than this number of pixels away; and the length of a title.
const NEAR_END = 80, TITLE = 60;

function button(text, label, act) {
  const node = document.createElement("button");
  node.type = "button";
  node.className = "plain";
  node.textContent = text;
  node.setAttribute("aria-label", label);
  node.addEventListener("click", act);
  return node;
}

export class Conversation {
  // `hooks`: `model()`, `changed(chat)`, `running(isRunning)`, `announce(text)`, `usage(usage)`, `speed(text)`.
  constructor(log, empty, hooks) {
    Object.assign(this, { log, empty, hooks, chat: history.fresh(), running: null, follows: true });
    log.addEventListener("scroll", () => { this.follows = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END; }, { passive: true });
  }

  // Shows a chat.
  show(chat) {
    this.stop();
    this.chat = chat;
    this.log.replaceChildren(this.empty, ...chat.turns.map((turn, i) => this.#turn(turn, i)));
    this.#refresh();
    this.#scrollToEnd();
  }

  stop() { this.running?.abort(); }

  // Sends a question.
  async ask(question, attached) {
    if (this.running) return;
    if (!this.chat.turns.length) this.chat.title = (question || attached[0]?.name || "Chat").replace(/\s+/g, " ").slice(0, TITLE);
    const turn = { question, files: attached, answers: [] };
    this.chat.turns.push(turn);
    this.log.append(this.#turn(turn, this.chat.turns.length - 1));
    await this.#answer(turn);
  }

  // Answers the last question again.
  async regenerate() {
    const turn = this.chat.turns.at(-1);
    if (turn && !this.running) await this.#answer(turn);
  }

  // Replaces the question of a turn. The later turns are deleted.
  edit(index = this.chat.turns.length - 1) {
    const turn = this.chat.turns[index];
    if (!turn || this.running) return;
    const box = this.log.querySelectorAll(".turn")[index].querySelector(".question"), text = document.createElement("textarea");
    text.value = turn.question;
    text.setAttribute("aria-label", "Edit the question");
    const send = async () => {
      if (this.running || !text.value.trim()) return;
      this.chat.turns.length = index;
      for (const old of [...this.log.querySelectorAll(".turn")].slice(index)) old.remove();
      await this.ask(text.value.trim(), turn.files);
    };
    const cancel = () => { box.replaceWith(this.#question(turn, index)); };
    text.addEventListener("keydown", event => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
      if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    });
    const actions = document.createElement("div");
    actions.append(button("Send", "Send the edited question", send), button("Cancel", "Cancel the edit", cancel));
    box.replaceChildren(text, actions);
    text.focus();
  }

  #messages(turn, column) {
    const messages = [], system = settings.systemPrompt();
    if (system) messages.push({ role: "system", content: system });
    for (const earlier of this.chat.turns) {
      messages.push({ role: "user", content: files.message(earlier.question, earlier.files) });
      if (earlier === turn) break;
      const answer = earlier.answers[column] || earlier.answers[0];
      if (answer?.text) messages.push({ role: "assistant", content: answer.text });
    }
    return messages;
  }

  // One column after the other: each has the speed that it has alone.
  async #answer(turn) {
    const controller = this.running = new AbortController(), { chat } = this;
    const variants = settings.variants();
    turn.answers = variants.map(({ title }) => ({ title, text: "", thinking: "" }));
    const views = turn.answers.map(answer => new AnswerView(answer)), index = chat.turns.indexOf(turn);
    const box = this.log.querySelectorAll(".turn")[index].querySelector(".answers");
    box.classList.toggle("two", views.length > 1);
    box.replaceChildren(...views.map(view => view.box));
    this.#refresh();
    this.#scrollToEnd();
    this.hooks.running(true);
    this.hooks.announce("The model answers.");
    for (const [column, { fields }] of variants.entries()) {
      const answer = turn.answers[column];
      if (controller.signal.aborted) answer.stopped = true;
      else await this.#stream(answer, views[column], { messages: this.#messages(turn, column), ...fields }, controller.signal);
      views[column].finish();
    }
    if (this.running === controller) this.running = null;
    chat.updated = Date.now();
    await this.hooks.changed(chat);
    this.hooks.running(false);
    if (this.chat !== chat) return;
    this.hooks.announce(`${turn.answers[0].stopped ? "Stopped. " : "Answer: "}${turn.answers[0].error || turn.answers[0].text.slice(0, 2000)}`);
    this.hooks.usage(turn.answers[0].usage || null);
    this.#refresh();
  }

  #scrollToEnd() {
    this.log.scrollTop = this.log.scrollHeight;
    this.follows = true;
  }

  async #stream(answer, view, body, signal) {
    let pieces = 0, first = 0;
    const grown = () => {
      // A piece is a token, or a few of them.
      const seconds = (performance.now() - first) / 1000;
      this.hooks.speed(seconds > 1 ? `about ${(pieces / seconds).toFixed(1)} tok/s` : "");
      if (this.follows) this.#scrollToEnd();
    };
    try {
      const model = this.hooks.model();
      const request = { ...(model ? { model } : {}), ...settings.request(), ...body };
      const result = await api.chat(request, signal, (text, thinking) => {
        pieces++;
        first ||= performance.now();
        answer.text += text.replace(/\r\n?/g, "\n");
        answer.thinking += thinking;
        view.grow(grown);
      });
      Object.assign(answer, result);
    } catch (error) {
      if (error.name === "AbortError") answer.stopped = true; else answer.error = error.message;
    }
    this.hooks.speed("");
  }

  #turn(turn, index) {
    const box = document.createElement("section"), answers = document.createElement("div");
    box.className = "turn";
    box.setAttribute("aria-label", `Question ${index + 1}`);
    answers.className = "answers";
    answers.classList.toggle("two", turn.answers.length > 1);
    for (const answer of turn.answers) {
      const view = new AnswerView(answer);
      view.finish();
      answers.append(view.box);
    }
    const actions = document.createElement("div");
    actions.className = "actions";
    actions.append(
      button("Copy", "Copy the answer", () => this.#copy(turn)),
      button("Regenerate", "Regenerate the answer", () => this.regenerate()),
    );
    box.append(this.#question(turn, index), answers, actions);
    return box;
  }

  async #copy(turn) {
    const done = await copy(turn.answers.map(answer => answer.text).join("\n\n"));
    this.hooks.announce(done ? "Copied" : "The browser forbids to copy");
  }

  #question(turn, index) {
    const box = document.createElement("div"), text = document.createElement("div");
    box.className = "question";
    text.className = "text";
    text.textContent = turn.question;
    const chips = document.createElement("div");
    chips.className = "chips";
    for (const file of turn.files || []) {
      const chip = document.createElement("span");
      chip.className = "chip";
      chip.textContent = file.name;
      chips.append(chip);
    }
    box.append(chips, text, button("Edit", "Edit the question", () => this.edit(index)));
    return box;
  }

  // Shows the actions of the last turn, and the width of a comparison.
  #refresh() {
    const turns = [...this.log.querySelectorAll(".turn")];
    this.empty.hidden = turns.length > 0;
    this.log.classList.toggle("compared", this.chat.turns.some(turn => turn.answers.length > 1));
    turns.forEach((turn, i) => {
      const last = i + 1 === turns.length;
      turn.querySelector(".actions").hidden = Boolean(this.running) && last;
      turn.querySelector(".actions button:last-child").hidden = !last;
    });
  }
}
