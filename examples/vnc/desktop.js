/**
 * A remote desktop that reconnects: noVNC's RFB on one connection after the other.
 *
 * An RFB object lasts as long as its connection. This class keeps the state that outlives it: the back-off, the accepted
 * password, the display settings. Of the page it only knows the element that contains the picture.
 *
 * Events, each with a `detail`:
 *   state      the state of the connection (see ../lib/retry.js)
 *   ask        the password is needed; {error}: why the last one was refused, if it was
 *   connected  the desktop is shown; {name} of the desktop
 *   leaving    the connection has ended; {canvas} still has the last frame
 *   clipboard  text was copied on the desktop; {text}
 */

import RFB from '@novnc/novnc';

import { ChannelEvent } from '../lib/channel.js';
import { Retry, openChannel } from '../lib/socket.js';

/** A non-incremental FramebufferUpdateRequest for the top left pixel, which the server must answer (RFC 6143 §7.5.3). */
const PROBE = Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 1, 0, 1);

/** A server sends nothing while the desktop does not change: it is probed after 4 s, and has 10 s to answer. */
const LIVENESS = { quiet: 4_000, slow: 2_000, timeout: 10_000 };

export class RemoteDesktop extends EventTarget {
  #target;
  #url;
  #retry;
  #current; // the current connection: {rfb, channel, ready, needsPassword, passwordSent, name}
  #password;
  #fit = true;
  #viewOnly = false;

  /**
   * @param {HTMLElement} target the element that contains the picture
   * @param {URL} url the gateway's route
   */
  constructor(target, url) {
    super();
    this.#target = target;
    this.#url = url;
    this.#retry = new Retry(() => this.#connect());
    this.#retry.addEventListener('state', ({ detail }) => this.#emit('state', detail));
  }

  /** The current state (see ../lib/retry.js). */
  get state() {
    return this.#retry.state;
  }

  connect() {
    this.#retry.retryNow();
  }

  disconnect() {
    this.#retry.stop('Disconnected.');
    this.#current?.rfb.disconnect();
  }

  /** Uses this password: sends it at once, or as soon as the server requests it. */
  usePassword(password) {
    this.#password = password;
    if (this.#current?.needsPassword) this.#sendPassword();
    else this.#retry.retryNow();
  }

  get fit() {
    return this.#fit;
  }

  /** Whether the picture is scaled to its element, or unscaled with scroll bars. */
  set fit(fit) {
    this.#fit = fit;
    if (this.#current) this.#current.rfb.scaleViewport = fit;
  }

  get viewOnly() {
    return this.#viewOnly;
  }

  set viewOnly(viewOnly) {
    this.#viewOnly = viewOnly;
    if (this.#current) this.#current.rfb.viewOnly = viewOnly;
  }

  /** Sends text to the desktop's clipboard; false if there is no desktop, or in view-only mode. */
  sendClipboard(text) {
    if (!this.#current?.ready || this.#viewOnly) return false;
    this.#current.rfb.clipboardPasteFrom(text.replaceAll('\r\n', '\n'));
    return true;
  }

  /** Presses keys, [keysym, code] each, and releases them in reverse order. */
  press(keys) {
    const rfb = this.#current?.rfb;
    for (const [keysym, code] of keys) rfb?.sendKey(keysym, code, true);
    for (const [keysym, code] of [...keys].reverse()) rfb?.sendKey(keysym, code, false);
  }

  focus() {
    this.#current?.rfb.focus();
  }

  #connect() {
    const current = { ready: false, needsPassword: false, passwordSent: false, name: '' };
    const probe = () => (current.ready ? PROBE : undefined);
    current.channel = openChannel(this.#url, { liveness: { ...LIVENESS, probe } });
    let outcome; // overrides the close code
    let ended = false;

    // Added before noVNC's listener, so that it runs while the picture is still there.
    current.channel.addEventListener('close', ({ description, retry, byServer }) => {
      ended = true;
      const canvas = this.#target.querySelector('canvas');
      if (current.ready && canvas) this.#emit('leaving', { canvas });
      if (this.#current !== current) return;
      this.#current = undefined;
      // RFB has no closing message; a server that closes the connection is probably restarting.
      this.#retry.ended(outcome ?? { description, retry: retry || byServer });
    });
    current.channel.addEventListener('stalled', ({ detail }) => {
      if (this.#current === current) this.#retry.describe(`No answer for ${Math.round(detail.ms / 1000)} s. Is the network down?`);
    });
    current.channel.addEventListener('recovered', () => {
      if (this.#current === current) this.#retry.describe(connected(current.name));
    });

    const rfb = new RFB(this.#target, current.channel, { shared: true });
    current.rfb = rfb;
    this.#current = current;
    rfb.scaleViewport = this.#fit;
    rfb.viewOnly = this.#viewOnly;
    rfb.background = 'transparent';

    rfb.addEventListener('credentialsrequired', ({ detail }) => {
      if (detail.types.some((type) => type !== 'password')) {
        outcome = { description: `The desktop requires more than a password: ${detail.types.join(', ')}.`, retry: false };
        rfb.disconnect();
        return;
      }
      current.needsPassword = true;
      if (this.#password !== undefined) return this.#sendPassword();
      this.#retry.describe('The desktop asks for its password.');
      this.#emit('ask', {});
    });
    rfb.addEventListener('securityfailure', ({ detail }) => {
      const reason = detail.reason?.trim().replace(/\.$/, '');
      if (current.passwordSent) {
        this.#password = undefined;
        const error = `The password was not right${reason ? ` (${reason})` : ''}.`;
        outcome = { description: error, retry: false };
        this.#emit('ask', { error });
      } else {
        outcome = { description: `The desktop refuses all logins at the moment${reason ? `: ${reason}` : ''}.`, retry: true };
      }
    });
    rfb.addEventListener('desktopname', ({ detail }) => {
      current.name = detail.name;
    });
    rfb.addEventListener('connect', () => {
      current.ready = true;
      this.#retry.opened(connected(current.name));
      this.#emit('connected', { name: current.name });
    });
    rfb.addEventListener('clipboard', ({ detail }) => this.#emit('clipboard', { text: detail.text }));
    rfb.addEventListener('disconnect', ({ detail }) => {
      // noVNC itself has ended the connection.
      if (ended || detail.clean) return;
      outcome ??= { description: 'An RFB protocol error ended the connection.', retry: current.ready };
    });
  }

  #sendPassword() {
    this.#current.needsPassword = false;
    this.#current.passwordSent = true;
    this.#current.rfb.sendCredentials({ password: this.#password });
  }

  #emit(type, detail) {
    this.dispatchEvent(new ChannelEvent(type, { detail }));
  }
}

function connected(name) {
  return name ? `Connected to ${name}.` : 'Connected.';
}
