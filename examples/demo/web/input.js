// Translates pointer, touch and key events of the canvas to RFB PointerEvent and KeyEvent messages.

// X11 keysyms of keys without a character, by KeyboardEvent.key.
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

// The keysym of a character or a named key; undefined if there is none.
export function keysym(key) {
  if (Object.hasOwn(KEYSYMS, key)) return KEYSYMS[key];
  const point = key.codePointAt(0);
  if (point === undefined || String.fromCodePoint(point) !== key) return undefined;
  return point < 0x100 ? point : 0x01000000 | point;
}

// Sends the input of `canvas` and `keyboard` (a text field, which makes a phone show its keyboard) to `session()`.
export function listen(canvas, keyboard, session) {
  const position = (event) => {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * canvas.width) / box.width,
      ((event.clientY - box.top) * canvas.height) / box.height,
    ];
  };
  // RFB numbers left, middle, right from the lowest bit; the DOM numbers left, right, middle.
  const buttons = ({ buttons: pressed }) => (pressed & 1) | ((pressed & 2) << 1) | ((pressed & 4) >> 1);
  const sendPointer = (event) => session()?.pointer(buttons(event), ...position(event));

  canvas.addEventListener("pointerdown", (event) => {
    // Only the first finger draws: RFB has one pointer.
    if (!event.isPrimary) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    sendPointer(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.isPrimary) return;
    // A fast stroke has several moves in one event; all of them are needed for a smooth line.
    const moves = event.buttons ? (event.getCoalescedEvents?.() ?? []) : [];
    for (const move of moves.length ? moves : [event]) session()?.pointer(buttons(event), ...position(move));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      if (event.isPrimary) session()?.pointer(end === "pointerup" ? buttons(event) : 0, ...position(event));
    });
  }
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  // The keysyms of pressed keys, by physical key: a key is released as it was pressed, even if Shift was released between.
  const down = new Map();
  const release = (code) => {
    const symbol = down.get(code);
    if (symbol !== undefined) session()?.key(symbol, false);
    down.delete(code);
  };
  canvas.addEventListener("keydown", (event) => {
    // Tab moves the focus, so that the canvas can be left by keyboard; browser shortcuts keep working.
    // AltGr counts as Ctrl on some systems, and many layouts need it for @ or {.
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
  // On-screen keyboards send no key codes: their text is read, and the field stays empty.
  keyboard.addEventListener("keydown", (event) => {
    // Some browsers send no beforeinput event for deleting in an empty field.
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
