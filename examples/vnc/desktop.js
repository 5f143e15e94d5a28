/**
 * A desktop that comes back: noVNC's RFB on one connection after the other.
 *
 * An RFB lives as long as its connection. This keeps what outlives it: when to connect again, the password that was
 * right, how the picture is shown. It knows nothing of the page but the element that the picture goes into.
 *
 * Events, each with a `detail`:
 *   state      what to show (see ../lib/retry.js)
 *   ask        the password is wanted; {fault}: what was wrong with the last one, in words, if there was one
 *   connected  the picture is there; {name} of the desktop
 *   leaving    the picture is about to vanish; {canvas} shows it still
 *   clipboard  something was copied on the desktop; {text}
 */

import RFB from '@novnc/novnc';

import { ChannelEvent } from '../lib/channel.js';
import { Retry, openChannel } from '../lib/socket.js';

/** A whole FramebufferUpdateRequest for the top left pixel, not incremental: the server has to answer (RFC 6143 §7.5.3). */
const ARE_YOU_THERE = Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 1, 0, 1);

/** A desktop on which nothing moves says nothing: it is asked after 4 s, and has 10 s to answer. */
const LIVENESS = { quiet: 4_000, slow: 2_000, timeout: 10_000 };

export class Desk extends EventTarget {
  #target;
  #url;
  #retry;
  #now; // the present connection: {rfb, channel, ready, wants, tried, name}
  #password;
  #fit = true;
  #viewOnly = false;

  /**
   * @param {HTMLElement} target where the picture goes
   * @param {URL} url the gateway's route
   */
  constructor(target, url) {
    super();
    this.#target = target;
    this.#url = url;
    this.#retry = new Retry(() => this.#connect());
    this.#retry.addEventListener('state', ({ detail }) => this.#tell('state', detail));
  }

  /** What it is like now (see ../lib/retry.js). */
  get state() {
    return this.#retry.state;
  }

  connect() {
    this.#retry.retryNow();
  }

  disconnect() {
    this.#retry.stop('Disconnected.');
    this.#now?.rfb.disconnect();
  }

  /** Somebody has typed the password. It goes out at once, or as soon as the desktop asks. */
  usePassword(password) {
    this.#password = password;
    if (this.#now?.wants) this.#sendPassword();
    else this.#retry.retryNow();
  }

  get fit() {
    return this.#fit;
  }

  /** Whether the picture is scaled to its element, or has its own size and scroll bars. */
  set fit(fit) {
    this.#fit = fit;
    if (this.#now) this.#now.rfb.scaleViewport = fit;
  }

  get viewOnly() {
    return this.#viewOnly;
  }

  set viewOnly(viewOnly) {
    this.#viewOnly = viewOnly;
    if (this.#now) this.#now.rfb.viewOnly = viewOnly;
  }

  /** Puts text on the desktop's clipboard; false if there is no desktop that takes it. */
  copyTo(text) {
    if (!this.#now?.ready || this.#viewOnly) return false;
    this.#now.rfb.clipboardPasteFrom(text.replaceAll('\r\n', '\n'));
    return true;
  }

  /** Presses keys one after the other and lets them go in reverse: [keysym, code] each. */
  press(keys) {
    const rfb = this.#now?.rfb;
    for (const [keysym, code] of keys) rfb?.sendKey(keysym, code, true);
    for (const [keysym, code] of [...keys].reverse()) rfb?.sendKey(keysym, code, false);
  }

  focus() {
    this.#now?.rfb.focus();
  }

  #connect() {
    const now = { ready: false, wants: false, tried: false, name: '' };
    const probe = () => (now.ready ? ARE_YOU_THERE : undefined);
    now.channel = openChannel(this.#url, { liveness: { ...LIVENESS, probe } });
    let verdict; // what is known about the end beside what its close code says
    let over = false;

    // Before noVNC takes the channel, so that this hears of its end while the picture is still there.
    now.channel.addEventListener('close', ({ words, retry, byServer }) => {
      over = true;
      const canvas = this.#target.querySelector('canvas');
      if (now.ready && canvas) this.#tell('leaving', { canvas });
      if (this.#now !== now) return;
      this.#now = undefined;
      // A VNC server has no way to say goodbye; one that closes is probably being restarted.
      this.#retry.ended(verdict ?? { words, retry: retry || byServer });
    });
    now.channel.addEventListener('silence', ({ detail }) => {
      if (this.#now === now) this.#retry.say(`No answer for ${Math.round(detail.ms / 1000)} s. Is the network down?`);
    });
    now.channel.addEventListener('voice', () => {
      if (this.#now === now) this.#retry.say(connected(now.name));
    });

    const rfb = new RFB(this.#target, now.channel, { shared: true });
    now.rfb = rfb;
    this.#now = now;
    rfb.scaleViewport = this.#fit;
    rfb.viewOnly = this.#viewOnly;
    rfb.background = 'transparent';

    rfb.addEventListener('credentialsrequired', ({ detail }) => {
      if (detail.types.some((type) => type !== 'password')) {
        verdict = { words: `The desktop asks for more than a password: ${detail.types.join(', ')}.`, retry: false };
        rfb.disconnect();
        return;
      }
      now.wants = true;
      if (this.#password !== undefined) return this.#sendPassword();
      this.#retry.say('The desktop asks for its password.');
      this.#tell('ask', {});
    });
    rfb.addEventListener('securityfailure', ({ detail }) => {
      const reason = detail.reason?.trim().replace(/\.$/, '');
      if (now.tried) {
        this.#password = undefined;
        const fault = `The password was not right${reason ? ` (${reason})` : ''}.`;
        verdict = { words: fault, retry: false };
        this.#tell('ask', { fault });
      } else {
        verdict = { words: `The desktop lets nobody in for now${reason ? `: ${reason}` : ''}.`, retry: true };
      }
    });
    rfb.addEventListener('desktopname', ({ detail }) => {
      now.name = detail.name;
    });
    rfb.addEventListener('connect', () => {
      now.ready = true;
      this.#retry.opened(connected(now.name));
      this.#tell('connected', { name: now.name });
    });
    rfb.addEventListener('clipboard', ({ detail }) => this.#tell('clipboard', { text: detail.text }));
    rfb.addEventListener('disconnect', ({ detail }) => {
      // noVNC gave up, and nobody else did.
      if (over || detail.clean) return;
      verdict ??= { words: 'This page and the desktop do not understand each other.', retry: now.ready };
    });
  }

  #sendPassword() {
    this.#now.wants = false;
    this.#now.tried = true;
    this.#now.rfb.sendCredentials({ password: this.#password });
  }

  #tell(type, detail) {
    this.dispatchEvent(new ChannelEvent(type, { detail }));
  }
}

function connected(name) {
  return name ? `Connected to ${name}.` : 'Connected.';
}
