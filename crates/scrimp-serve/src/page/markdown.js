// Markdown to DOM nodes. Two layers keep the text of a model inert: marked writes raw HTML as text, and DOMPurify keeps only
// the elements and attributes listed here. The page's policy for trusted types forbids every other way from text to HTML.
//
// A growing text is rendered by blocks. Blocks that later text cannot change are settled: they are rendered once, and each
// update costs time in proportion to the last blocks only.
import { marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import hljs from "./vendor/highlight.js";

// Maximum number of characters of a block of code that is highlighted: whole, and while it grows.
const MAX_HIGHLIGHTED = 20_000, MAX_GROWING = 3_000;
// Number of blocks at the end that later text may change: a list or a table grows, "===" below a line makes a heading.
const UNSETTLED = 2;

const ALLOWED = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "span",
    "strong", "table", "tbody", "td", "th", "thead", "tr", "ul", "#text"],
  ALLOWED_ATTR: ["class", "href", "start", "title"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};

const escape = text => text.replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
let growing = false;

marked.use({
  gfm: true,
  renderer: {
    html({ text }) { return escape(text); },
    // The page's own headings have the levels 1 and 2, an answer's title 3.
    heading({ tokens, depth }) { const level = Math.min(depth + 3, 6); return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`; },
    // No request to other hosts: an image is a link.
    image({ href, text }) { return `<a href="${escape(href)}">${escape(text || href)}</a>`; },
    checkbox({ checked }) { return checked ? "☑ " : "☐ "; },
    code({ text, lang }) {
      const name = (lang || "").trim().split(/[\s,{]/)[0].toLowerCase();
      const known = hljs.getLanguage(name) && text.length <= (growing ? MAX_GROWING : MAX_HIGHLIGHTED);
      const html = known ? hljs.highlight(text, { language: name, ignoreIllegals: true }).value : escape(text);
      return `<pre><code class="language-${escape(name || "text")}">${html}</code></pre>`;
    },
  },
});

DOMPurify.addHook("afterSanitizeAttributes", node => {
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  }
  const classes = (node.getAttribute("class") || "").split(/\s+/).filter(name => /^(?:hljs|language)-[\w+#.-]+$|^(?:function_|class_|inherited__)$/.test(name));
  if (classes.length) node.setAttribute("class", classes.join(" ")); else node.removeAttribute("class");
});

// The nodes of tokens of marked.
function nodes(tokens) {
  const fragment = DOMPurify.sanitize(marked.parser(tokens), ALLOWED);
  for (const pre of fragment.querySelectorAll("pre")) frame(pre);
  for (const table of fragment.querySelectorAll("table")) {
    const box = document.createElement("div");
    box.className = "table";
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Table");
    table.replaceWith(box);
    box.append(table);
  }
  return fragment;
}

// Puts a block of code into a box with its language and a button that copies it.
function frame(pre) {
  const box = document.createElement("div"), head = document.createElement("header"), name = document.createElement("span");
  const copy = document.createElement("button");
  box.className = "code";
  name.textContent = (pre.firstElementChild?.className.match(/language-(\S+)/) || [, "text"])[1];
  copy.type = "button";
  copy.className = "plain copy";
  copy.textContent = "Copy";
  copy.setAttribute("aria-label", "Copy the code");
  pre.tabIndex = 0;
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", `Code: ${name.textContent}`);
  pre.replaceWith(box);
  head.append(name, copy);
  box.append(head, pre);
}

// A text in `root` that grows.
export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.settled = 0;
    this.tail = [];
    this.hasReferences = false;
  }

  // Shows the beginning `text` of a growing text.
  grow(text) {
    const rest = text.slice(this.settled);
    const tokens = marked.lexer(rest);
    this.hasReferences ||= Object.keys(tokens.links).length > 0;
    // A space between blocks is a token.
    const blocks = tokens.reduce((n, token) => n + (token.type !== "space"), 0);
    let keep = tokens.length, seen = 0;
    if (blocks > UNSETTLED) while (keep > 0 && seen < UNSETTLED) seen += tokens[--keep].type !== "space";
    else keep = 0;
    for (const node of this.tail) node.remove();
    if (keep > 0) {
      const head = tokens.slice(0, keep), raw = head.map(token => token.raw).join("");
      if (rest.startsWith(raw)) {
        head.links = tokens.links;
        this.root.append(nodes(head));
        this.settled += raw.length;
        tokens.splice(0, keep);
      }
    }
    growing = true;
    const fragment = nodes(tokens);
    growing = false;
    this.tail = [...fragment.childNodes];
    this.root.append(fragment);
  }

  // Shows a whole text.
  finish(text) {
    const rest = this.hasReferences ? text : text.slice(this.settled);
    for (const node of this.tail) node.remove();
    if (this.hasReferences) this.root.textContent = "";
    this.tail = [];
    this.settled = 0;
    this.root.append(nodes(marked.lexer(rest)));
  }
}
