/** What `-o encrypt.…` asks for, with the defaults of qemu-img. */

import { UsageError } from "../errors.ts";
import {
  CIPHER_MODES,
  CIPHER_NAMES,
  CIPHERS,
  HASHES,
  IV_GENERATORS,
  keysOf,
  mismatchOf,
} from "../formats/encryption/cipher-suite.ts";
import type { LuksWanted } from "../formats/encryption/luks-area.ts";
import type { CreateEncryption } from "../formats/qcow2/create-header.ts";
import type { CreateOptions } from "./create-options.ts";
import { checkNewSecret } from "./secrets.ts";

/** In qemu-img's order. */
export const ENCRYPT_OPTIONS = [
  "encrypt.format",
  "encrypt.cipher-alg",
  "encrypt.cipher-mode",
  "encrypt.ivgen-alg",
  "encrypt.ivgen-hash-alg",
  "encrypt.hash-alg",
  "encrypt.iter-time",
] as const;

const DEFAULT = {
  cipher: "aes-256",
  mode: "xts",
  ivGenerator: "plain64",
  hash: "sha256",
  iterTimeMs: 2000,
} as const;

/** Milliseconds: QEMU's default is two seconds, and who waits longer than this has mistyped. */
const ITER_TIME_MAX_MS = 600_000;

/**
 * The encryption that the options describe.
 *
 * @param path of the image, for messages
 * @param secrets the first one is that of the new image; the legacy method stores nothing of it
 * @returns undefined: none
 * @throws {UsageError}
 */
export function requestedEncryption(
  path: string,
  list: CreateOptions,
  secrets: readonly Uint8Array[],
): CreateEncryption | undefined {
  const isLegacy = list.bool("encryption");
  const stated = list.word("encrypt.format", ["aes", "luks"]);
  if (isLegacy !== undefined && stated !== undefined) {
    throw new UsageError(path, "encrypt.format and its alias encryption contradict each other");
  }
  const format = isLegacy === true ? "aes" : stated;
  if (format !== "luks") {
    const other = ENCRYPT_OPTIONS.find((name) => {
      return name !== "encrypt.format" && list.text(name) !== undefined;
    });
    if (other !== undefined) throw new UsageError(path, `${other} needs encrypt.format=luks`);
    return format && { format };
  }
  const [passphrase] = secrets;
  if (passphrase === undefined) {
    const reason = "encrypt.format=luks needs a passphrase: --secret FILE, or TSIMGFS_SECRET";
    throw new UsageError(path, reason);
  }
  checkNewSecret(path, passphrase);
  return { format, luks: { ...requestedCiphers(path, list), passphrase } };
}

function requestedCiphers(path: string, list: CreateOptions): Omit<LuksWanted, "passphrase"> {
  const cipher = list.word("encrypt.cipher-alg", CIPHER_NAMES) ?? DEFAULT.cipher;
  const mode = list.word("encrypt.cipher-mode", CIPHER_MODES) ?? DEFAULT.mode;
  const ivGenerator = list.word("encrypt.ivgen-alg", IV_GENERATORS) ?? DEFAULT.ivGenerator;
  const ivHash = list.word("encrypt.ivgen-hash-alg", HASHES) ?? DEFAULT.hash;
  const hash = list.word("encrypt.hash-alg", HASHES) ?? DEFAULT.hash;
  const iterTimeMs = requestedIterTimeMs(path, list.number("encrypt.iter-time"));
  const { algorithm, keySize } = CIPHERS[cipher];
  const keyBytes = keySize * keysOf(mode);
  const hashOfKey = ivGenerator === "essiv" ? ivHash : undefined;
  const suite = { algorithm, keyBytes, mode, ivGenerator, ivHash: hashOfKey };
  const mismatch = mismatchOf(suite);
  if (mismatch !== undefined) throw new UsageError(path, mismatch);
  return { suite, hash, iterTimeMs };
}

/**
 * Processor time that a try of a passphrase is to take, ms.
 *
 * @param path what the message names
 * @param stated undefined: the default
 * @throws {UsageError} it is too long
 */
export function requestedIterTimeMs(path: string, stated: number | undefined): number {
  const iterTimeMs = stated ?? DEFAULT.iterTimeMs;
  if (iterTimeMs <= ITER_TIME_MAX_MS) return iterTimeMs;
  throw new UsageError(path, `encrypt.iter-time ${iterTimeMs} is above ${ITER_TIME_MAX_MS}`);
}
