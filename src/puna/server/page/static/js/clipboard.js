/** Copies text. */

/**
 * @param {string} text
 * @returns {Promise<boolean>} whether the text is in the clipboard
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyWithSelection(text); // the clipboard API needs HTTPS or localhost
  }
}

/** @param {string} text */
function copyWithSelection(text) {
  const active = /** @type {HTMLElement | null} */ (document.activeElement);
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "visually-hidden";
  (active?.closest("dialog") ?? document.body).append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  active?.focus();
  return copied;
}
