/** Replaces elements by newer ones, but keeps those that are the same: the browser lays out and paints only the others. */

/**
 * @param {Element} parent
 * @param {ChildNode[]} old the last children of the parent
 * @param {ChildNode[]} fresh what takes their place
 * @returns {ChildNode[]} the children that are in their place now
 */
export function reconcile(parent, old, fresh) {
  let same = 0;
  while (same < Math.min(old.length, fresh.length) && old[same].isEqualNode(fresh[same])) same += 1;
  // Text arrives at the end, so most of the first child that differs is the same, too.
  if (isGrown(old[same], fresh[same])) {
    reconcile(/** @type {any} */ (old[same]), [...old[same].childNodes], [...fresh[same].childNodes]);
    same += 1;
  }
  const before = old.at(-1)?.nextSibling ?? null;
  for (const node of old.slice(same)) node.remove();
  for (const node of fresh.slice(same)) parent.insertBefore(node, before);
  return [...old.slice(0, same), ...fresh.slice(same)];
}

/**
 * Whether only the children differ. A code block is replaced as a whole, because its buttons know its text.
 * @param {ChildNode | undefined} old
 * @param {ChildNode | undefined} fresh
 */
function isGrown(old, fresh) {
  if (!(old instanceof Element && fresh instanceof Element) || old.className === "code-block") return false;
  return old.cloneNode(false).isEqualNode(fresh.cloneNode(false));
}
