/** Makes invisible characters visible. They can reverse text, hide instructions or imitate another name. */

/** C0 and C1 controls except tab and line feed, the marks, embeddings and isolates of bidirectional text, invisible
 * separators, and the tag characters that encode hidden ASCII. Joiners (U+200C, U+200D) stay, for scripts and emoji. */
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

/**
 * @param {string} text
 * @returns {string} with LF line ends, and a symbol such as ␛ or ⟦U+202E⟧ in place of each invisible character
 */
export function visible(text) {
  return text.replace(/\r\n?/g, "\n").replace(HIDDEN, (character) => {
    const code = /** @type {number} */ (character.codePointAt(0));
    if (code < 0x20) return String.fromCodePoint(0x2400 + code); // the Unicode block of control pictures
    if (code === 0x7f) return "␡";
    return `⟦U+${code.toString(16).toUpperCase().padStart(4, "0")}⟧`;
  });
}
