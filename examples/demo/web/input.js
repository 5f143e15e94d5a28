// Pointer, touch and keys on the canvas become PointerEvent and KeyEvent.

// Keys that are not letters, by KeyboardEvent.key; the numbers are X11's.
const KEYSYMS = {
  Backspace: 0xff08,
  Enter: 0xff0d,
  Escape: 0xff1b,
  Home: 0xff50,
  ArrowLeft: 0xff51,
  ArrowUp: 0xff52,
  ArrowRight: 0xff53,
  ArrowDown: 0xff54,
  PageUp: 0xff55,
  PageDown: 0xff56,
  End: 0xff57,
  Insert: 0xff63,
  Delete: 0xffff,
  Shift: 0xffe1,
};

export const ESCAPE = KEYSYMS.Escape;

// The keysym of a character or of a named key; undefined if there is none.
export function keysym(key) {
  if (Object.hasOwn(KEYSYMS, key)) return KEYSYMS[key];
  const point = key.codePointAt(0);
  if (point === undefined || String.fromCodePoint(point) !== key) return undefined;
  return point < 0x100 ? point : 0x01000000 | point;
}

// Listens on `canvas` and `keyboard` (a text field that makes a phone show its keys) and forwards the events to `session()`.
export function listen(canvas, keyboard, session) {
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * canvas.width) / box.width,
      ((event.clientY - box.top) * canvas.height) / box.height,
    ];
  };
  // RFB numbers left, middle, right from the lowest bit; the DOM numbers left, right, middle.
  const buttons = ({ buttons: pressed }) => (pressed & 1) | ((pressed & 2) << 1) | ((pressed & 4) >> 1);
  const point = (event) => session()?.pointer(buttons(event), ...place(event));

  canvas.addEventListener("pointerdown", (event) => {
    // The first finger draws; a second one would be a second pointer, which RFB does not have.
    if (!event.isPrimary) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    point(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.isPrimary) return;
    // A fast stroke is many moves in one event: all of them make a round line.
    const moves = event.buttons ? (event.getCoalescedEvents?.() ?? []) : [];
    for (const move of moves.length ? moves : [event]) session()?.pointer(buttons(event), ...place(move));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      if (event.isPrimary) session()?.pointer(end === "pointerup" ? buttons(event) : 0, ...place(event));
    });
  }
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  // Pressed keys, by physical key, so that each is released with the keysym of its press, even if Shift was released between.
  const down = new Map();
  const release = (code) => {
    const symbol = down.get(code);
    if (symbol !== undefined) session()?.key(symbol, false);
    down.delete(code);
  };
  canvas.addEventListener("keydown", (event) => {
    // Tab stays with the page, so that the keyboard can leave the picture; the browser keeps its own shortcuts.
    // AltGr counts as Ctrl on some systems and is how many layouts type @ or {.
    const shortcut = (event.ctrlKey || event.metaKey) && !event.getModifierState("AltGraph");
    if (event.key === "Tab" || shortcut || event.isComposing) return;
    const symbol = keysym(event.key);
    if (symbol === undefined) return;
    event.preventDefault();
    down.set(event.code, symbol);
    session()?.key(symbol, true);
  });
  canvas.addEventListener("keyup", (event) => release(event.code));
  canvas.addEventListener("blur", () => [...down.keys()].forEach(release));

  const type = (symbol) => {
    if (symbol === undefined) return;
    session()?.key(symbol, true);
    session()?.key(symbol, false);
  };
  // On-screen keyboards send no key codes: read their text, and keep the field empty.
  keyboard.addEventListener("keydown", (event) => {
    // In an empty field there is nothing to delete, so some browsers send no beforeinput event.
    if (event.key !== "Backspace" && event.key !== "Enter") return;
    event.preventDefault();
    type(KEYSYMS[event.key]);
  });
  keyboard.addEventListener("beforeinput", (event) => {
    if (event.isComposing) return;
    if (event.inputType.startsWith("insert")) [...(event.data ?? "")].forEach((letter) => type(keysym(letter)));
    event.preventDefault();
  });
  keyboard.addEventListener("compositionend", (event) => {
    [...event.data].forEach((letter) => type(keysym(letter)));
    keyboard.value = "";
  });
}
