/** Text files that are dropped, pasted or chosen. */

export const FILE_LIMIT = 1024 * 1024;

/** A longer paste becomes a file, so that the message stays readable. */
const PASTE_LIMIT = 4000;

/**
 * @param {File} file
 * @returns {Promise<{name: string, text: string}>}
 * @throws {Error} if the file is too large or not UTF-8 text
 */
export async function readTextFile(file) {
  if (file.size > FILE_LIMIT)
    throw new Error(`${file.name} has ${Math.ceil(file.size / 1024)} KB; the limit is ${FILE_LIMIT / 1024} KB.`);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (text.includes("\0")) throw new Error("binary");
    return { name: file.name, text };
  } catch {
    throw new Error(`${file.name} is not a text file in UTF-8. Only text can be attached.`);
  }
}

/** @param {string} text of a paste */
export const isLongPaste = (text) => text.length > PASTE_LIMIT;
