/**
 * Passphrases of encrypted images: from files, standard input or the environment, but never from the
 * command line, which everybody on the machine can read.
 */

import { isUtf8 } from "node:buffer";
import fs from "node:fs";
import { UsageError } from "../errors.ts";
import { nodeErrorName } from "../syscalls/errno-names.ts";
import { DocumentedOption } from "./documented-option.ts";

/** The passphrase itself, where no option says anything. */
export const SECRET_VARIABLE = "TSIMGFS_SECRET";
/** Our limit, bytes: of what LUKS derives its keys from, more is of no use. */
const SECRET_MAX = 65536;
const STANDARD_INPUT = "-";
const STDIN = 0;
const NEWLINE = 0x0a;

/** What `--secret` and `--backing-secret` become: the files are read with the command line. */
export interface SecretOptions {
  readonly secret?: readonly Buffer[];
  readonly backingSecret?: readonly Buffer[];
}

/** Passphrases, as images are opened with them: see OpenOptions. */
export interface Secrets {
  readonly secrets: readonly Buffer[];
  readonly backingSecrets: readonly Buffer[];
}

export function secretOption(): DocumentedOption {
  const option = new DocumentedOption(
    "--secret <file>",
    "file with the passphrase of an image; -: standard input",
  )
    .minor()
    .inManual(
      `File with the passphrase of encrypted images: every byte counts, a final newline too. -: one line from standard input. May be repeated if images have different passphrases. Default: ${SECRET_VARIABLE} in the environment.`,
    );
  return option.argParser(collectSecret);
}

export function backingSecretOption(): DocumentedOption {
  const option = new DocumentedOption(
    "--backing-secret <file>",
    "the same for one encrypted backing file",
  )
    .minor()
    .inManual(
      "The passphrase of one encrypted backing file, as with --secret. Repeat it for each, starting with the first of the chain. Default: --secret is for all images.",
    );
  return option.argParser(collectSecret);
}

function collectSecret(file: string, all: readonly Buffer[] = []): readonly Buffer[] {
  return [...all, readSecret(file)];
}

/** All that were read and are still in memory. */
const held: Buffer[] = [];

/** What the options, or the environment, give. */
export function secretsOf({ secret, backingSecret = [] }: SecretOptions): Secrets {
  return { secrets: secret ?? secretsOfEnvironment(), backingSecrets: backingSecret };
}

function secretsOfEnvironment(): readonly Buffer[] {
  const text = process.env[SECRET_VARIABLE];
  return text === undefined || text === "" ? [] : [hold(Buffer.from(text))];
}

/**
 * Overwrite all passphrases that were read. Commands that work for long call it when all that needs them is
 * open; when a command ends, it is called in any case.
 */
export function forgetSecrets(): void {
  for (const secret of held.splice(0)) secret.fill(0);
}

function hold(secret: Buffer): Buffer {
  held.push(secret);
  return secret;
}

/**
 * Read a passphrase. Every byte of a file counts, as for QEMU and cryptsetup; a line on standard input ends
 * with a newline that does not.
 *
 * @throws {UsageError} it cannot be read, or is too long
 */
export function readSecret(file: string): Buffer {
  const isInput = file === STANDARD_INPUT;
  const name = isInput ? "standard input" : file;
  const bytes = readBytes(isInput ? STDIN : file, name);
  const endsLine = isInput && bytes.at(-1) === NEWLINE;
  const secret = endsLine ? bytes.subarray(0, -1) : bytes;
  if (secret.length > SECRET_MAX) {
    throw new UsageError(name, `the passphrase is longer than ${SECRET_MAX} bytes`);
  }
  return secret;
}

/**
 * Refuse what QEMU takes for no passphrase; what opens an image that exists is not asked this.
 *
 * @param subject what the message names
 * @param secret of a key slot that is to be made
 * @throws {UsageError} it is not text in UTF-8, or has a NUL
 */
export function checkNewSecret(subject: string, secret: Uint8Array): void {
  if (isUtf8(secret) && !secret.includes(0)) return;
  throw new UsageError(
    subject,
    "the new passphrase is not valid UTF-8, or has a NUL: QEMU could not open the image with it",
  );
}

/** One byte more than the limit, at the most: it may be a device without an end. */
function readBytes(source: string | number, name: string): Buffer {
  const buffer = hold(Buffer.alloc(SECRET_MAX + 2));
  let fd: number | undefined;
  try {
    fd = typeof source === "number" ? source : fs.openSync(source, "r");
    let length = 0;
    for (let count = 1; count > 0 && length < buffer.length; length += count) {
      count = fs.readSync(fd, buffer, length, buffer.length - length, null);
    }
    return buffer.subarray(0, length);
  } catch (cause) {
    throw new UsageError(name, `the passphrase cannot be read: ${nodeErrorName(cause)}`, { cause });
  } finally {
    if (fd !== undefined && fd !== source) fs.closeSync(fd);
  }
}
