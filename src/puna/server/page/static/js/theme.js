// A classic script, so that the theme is known before the first paint. The preference is "light", "dark" or absent
// (the system decides).
(function () {
  try {
    const theme = localStorage.getItem("puna.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is disabled: the system's theme applies.
  }
})();
