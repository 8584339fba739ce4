// Elements that stand for the same line of the program, data-line="v1 v2", are marked together: `lit` while the pointer
// or the focus is on one of them, `kept` from a click or Enter until the next one, Escape, or another program.
(() => {
  const namesOf = element => element?.closest?.("[data-line]")?.dataset.line.split(" ") ?? [];
  const code = () => document.getElementById("v1")?.closest("pre").textContent;
  let kept = [], program = code();

  function mark(kind, names) {
    for (const element of document.querySelectorAll("[data-line]"))
      element.classList.toggle(kind, element.dataset.line.split(" ").some(name => names.includes(name)));
  }

  function keep(names) {
    kept = String(names) === String(kept) ? [] : names;
    mark("kept", kept);
  }

  for (const kind of ["pointerover", "focusin"])
    document.addEventListener(kind, event => mark("lit", namesOf(event.target)));
  for (const kind of ["pointerout", "focusout"])
    document.addEventListener(kind, () => mark("lit", []));
  document.addEventListener("click", event => {
    const names = namesOf(event.target);
    if (names.length) keep(names);
  });
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") keep([]);
    if (event.key === "Enter" && event.target.matches?.("[data-line]:not(a)")) keep(namesOf(event.target));  // a clicks
  });
  new MutationObserver(() => {  // parts of the page may be replaced
    const now = code();
    if (now !== program) [program, kept] = [now, []];
    mark("kept", kept);
  }).observe(document, {childList: true, characterData: true, subtree: true});
})();
