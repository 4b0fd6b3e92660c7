/** Work per animation frame, so that the page stays responsive while an answer arrives. */

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

/** Milliseconds of a frame that work in slices may take. */
const BUDGET = 8;

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
