// Certificates: a self-signed one, and a certificate authority for tests.

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];

/** A certificate authority in a directory of its own. */
export class CertificateAuthority {
  constructor(directory) {
    this.directory = directory;
    fs.mkdirSync(directory, { recursive: true });
    this.certificate = this.#file('ca.pem');
    const files = ['-keyout', this.#file('ca.key'), '-out', this.certificate];
    openssl('req', '-x509', ...KEY, ...files, '-days', '2', '-subj', '/CN=Test authority');
  }

  /** Issues a certificate for these host names; returns its files: {certificate, privateKey}. */
  issue(...names) {
    const [certificate, privateKey] = [this.#file(`${names[0]}.crt`), this.#file(`${names[0]}.key`)];
    const [request, extensions] = [this.#file('request.pem'), this.#file('extensions')];
    openssl('req', ...KEY, '-keyout', privateKey, '-out', request, '-subj', `/CN=${names[0]}`);
    const alternatives = names.map((name) => `DNS:${name}`).join(',');
    fs.writeFileSync(extensions, `subjectAltName=${alternatives}\nextendedKeyUsage=serverAuth\n`);
    const by = ['-CA', this.certificate, '-CAkey', this.#file('ca.key'), '-CAcreateserial'];
    openssl('x509', '-req', '-in', request, ...by, '-days', '2', '-extfile', extensions, '-out', certificate);
    return { certificate, privateKey };
  }

  #file(name) {
    return path.join(this.directory, name);
  }
}

/** The files of a self-signed certificate for localhost, made by `portcullis cert` if missing: {certificate, privateKey}. */
export function selfSigned(program, directory) {
  const [certificate, privateKey] = ['localhost.crt', 'localhost.key'].map((name) => path.join(directory, name));
  if (!fs.existsSync(certificate) || !fs.existsSync(privateKey)) {
    for (const file of [certificate, privateKey]) fs.rmSync(file, { force: true });
    execFileSync(program, ['cert', '--out', directory], { stdio: ['ignore', 'ignore', 'pipe'] });
  }
  return { certificate, privateKey };
}

function openssl(...args) {
  execFileSync('openssl', args, { stdio: ['ignore', 'ignore', 'pipe'] });
}
