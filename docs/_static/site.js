// The keyboard can scroll code, tables and mathematics that are wider than the screen.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll("pre, .table-wrapper, .math-block")) {
    element.tabIndex = 0;
  }
});
