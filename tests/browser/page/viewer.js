// The test page: noVNC, and a few handles for the test that drives it.

import RFB from './novnc/core/rfb.js';

const screen = document.getElementById('screen');
const events = [];

function happened(text) {
  events.push(text);
  document.getElementById('state').textContent = text;
}

window.viewer = {
  /** What happened so far, in words. */
  events,

  /** How the WebSocket ended: {code, reason, wasClean}, or null while it has not. */
  closed: null,

  connect(address, password) {
    document.getElementById('address').textContent = address;
    happened('connecting');
    this.closed = null;
    const socket = new WebSocket(address);
    socket.addEventListener('error', () => happened('error'));
    socket.addEventListener('close', ({ code, reason, wasClean }) => {
      this.closed = { code, reason, wasClean };
    });
    this.rfb = new RFB(screen, socket, { credentials: { password } });
    this.rfb.addEventListener('connect', () => happened('connected'));
    this.rfb.addEventListener('disconnect', ({ detail }) => {
      happened(detail.clean ? 'disconnected' : 'connection lost');
    });
    this.rfb.addEventListener('securityfailure', ({ detail }) => happened(`not let in: ${detail.reason}`));
  },

  /** The pixels of the canvas as {width, height, rgba in base64}, or null while there is no canvas. */
  picture() {
    const canvas = screen.querySelector('canvas');
    if (!canvas?.width || !canvas.height) return null;
    const { width, height } = canvas;
    const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
    const CHUNK = 1 << 15;
    let text = '';
    for (let from = 0; from < pixels.length; from += CHUNK) {
      text += String.fromCharCode(...pixels.subarray(from, from + CHUNK));
    }
    return { width, height, rgba: btoa(text) };
  },
};
happened('ready');
