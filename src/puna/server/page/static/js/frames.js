/** Limits the work per animation frame, so that the page stays responsive while an answer arrives. */

/**
 * Returns a function that runs `task` in the next frame, once, however often the function is called. `flush` runs a
 * pending task now: a hidden tab has no frames.
 * @param {() => void} task
 */
export function oncePerFrame(task) {
  let frame = 0;
  const run = () => {
    frame = 0;
    task();
  };
  const schedule = () => {
    frame ||= requestAnimationFrame(run);
  };
  schedule.flush = () => {
    if (!frame) return;
    cancelAnimationFrame(frame);
    run();
  };
  return schedule;
}

/** Milliseconds per frame for work that is done in slices. */
const BUDGET = 8;

let frame = -1;
let frameEnd = 0;

/** @returns {boolean} whether this frame has time left for drawing answers; all answers share it */
export function hasTime() {
  const current = Number(document.timeline.currentTime);
  if (current !== frame) [frame, frameEnd] = [current, performance.now() + BUDGET];
  return performance.now() < frameEnd;
}

const channel = new MessageChannel();
/** @type {(() => void)[]} */
const waiting = [];
channel.port1.onmessage = () => waiting.shift()?.();

/** Lets the browser draw and handle events first. Timers would do the same, but hidden tabs slow them down. */
function yieldToBrowser() {
  return new Promise((resolve) => {
    waiting.push(() => resolve(undefined));
    channel.port2.postMessage(null);
  });
}

/**
 * Returns a function to await after each piece of work: it lets the browser run once the pieces have taken 8 ms.
 * @returns {() => Promise<void>}
 */
export function pacer() {
  let begin = performance.now();
  return async () => {
    if (performance.now() - begin < BUDGET) return;
    await yieldToBrowser();
    begin = performance.now();
  };
}

/**
 * Calls `step` until it returns false, for at most 8 ms per frame.
 * @param {() => boolean} step
 * @returns {Promise<void>} resolved when `step` has returned false
 */
export function inSlices(step) {
  return new Promise((resolve) => {
    const slice = () => {
      const end = performance.now() + BUDGET;
      while (performance.now() < end) {
        if (!step()) return resolve();
      }
      requestAnimationFrame(slice);
    };
    slice();
  });
}
