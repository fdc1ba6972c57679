// Copies a text. Browsers offer `navigator.clipboard` on secure pages only: HTTPS, or an address of this machine.
export async function copy(text) {
  if (navigator.clipboard) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* forbidden: the other way */ }
  }
  const before = document.activeElement, field = document.createElement("textarea");
  field.value = text;
  field.className = "unseen";
  field.setAttribute("aria-hidden", "true");
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}
