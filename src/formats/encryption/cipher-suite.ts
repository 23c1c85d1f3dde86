/**
 * How sectors are encrypted, and its names: those that LUKS headers have, and those of QEMU's options.
 * Source: LUKS On-Disk Format Specification 1.2.3, "Cipher and Hash specification registry".
 */

import { FormatError, UnsupportedError } from "../../errors.ts";

export const HASHES = ["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"] as const;
export type HashName = (typeof HASHES)[number];

/** Bytes. */
const HASH_SIZES: Readonly<Record<HashName, number>> = {
  md5: 16,
  sha1: 20,
  sha224: 28,
  sha256: 32,
  sha384: 48,
  sha512: 64,
  ripemd160: 20,
};

export const CIPHER_MODES = ["ecb", "cbc", "xts", "ctr"] as const;
export type CipherMode = (typeof CIPHER_MODES)[number];

/** How the initialisation vector of a sector comes from its number. */
export const IV_GENERATORS = ["plain", "plain64", "essiv"] as const;
export type IvGenerator = (typeof IV_GENERATORS)[number];

/** AES with what is around it: plain data. */
export interface CipherSuite {
  /** Bytes of the key; with XTS, of both keys together. */
  readonly keyBytes: number;
  readonly mode: CipherMode;
  readonly ivGenerator: IvGenerator;
  /** With essiv: what makes its key of the key. */
  readonly ivHash: HashName | undefined;
}

/** What a header says of its cipher, also where we have no such cipher. */
export interface NamedCipher {
  /** As QEMU's options name it, such as aes-256. */
  readonly cipher: string;
  readonly mode: CipherMode;
  readonly ivGenerator: IvGenerator;
  readonly ivHash: HashName | undefined;
  readonly keyBytes: number;
}

/** Bytes of the keys that ciphers may have in LUKS headers. */
const KEY_BYTES: Readonly<Record<string, readonly number[]>> = {
  aes: [16, 24, 32],
  serpent: [16, 24, 32],
  twofish: [16, 24, 32],
  cast5: [16],
};

/** AES keys, by QEMU's names. */
export const AES_KEY_BYTES = { "aes-128": 16, "aes-192": 24, "aes-256": 32 } as const;
export type AesName = keyof typeof AES_KEY_BYTES;

/** XTS has two keys. */
export function keysOf(mode: CipherMode): 1 | 2 {
  return mode === "xts" ? 2 : 1;
}

/**
 * Understand a header's cipher_name and cipher_mode, such as `aes` and `cbc-essiv:sha256`.
 *
 * @throws {FormatError} they are no such names
 */
export function parseCipher(
  names: { cipher: string; mode: string; keyBytes: number },
  path: string,
): NamedCipher {
  const fail = (reason: string): never => {
    throw new FormatError(path, `LUKS header: ${reason}`);
  };
  const match = /^([a-z]+)-([a-z0-9]+)(?::([a-z0-9]+))?$/.exec(names.mode);
  const mode = CIPHER_MODES.find((name) => name === match?.[1]);
  const ivGenerator = IV_GENERATORS.find((name) => name === match?.[2]);
  const ivHash = findHash(match?.[3]);
  if (mode === undefined || ivGenerator === undefined) {
    return fail(`cipher mode "${names.mode}" is not known`);
  }
  if (ivGenerator === "essiv" && ivHash === undefined) {
    return fail(`cipher mode "${names.mode}" needs a hash that is known`);
  }
  const keyBytes = names.keyBytes / keysOf(mode);
  if (KEY_BYTES[names.cipher]?.includes(keyBytes) !== true) {
    return fail(`cipher "${names.cipher}" with ${names.keyBytes} bytes of key is not known`);
  }
  const cipher = `${names.cipher}-${keyBytes * 8}`;
  return { cipher, mode, ivGenerator, ivHash, keyBytes: names.keyBytes };
}

/**
 * What `createSectorCipher` takes.
 *
 * @throws {UnsupportedError} a cipher that OpenSSL has not
 * @throws {FormatError} essiv with a hash that is no key
 */
export function suiteOf(named: NamedCipher, path: string): CipherSuite {
  const { cipher, mode, ivGenerator, ivHash, keyBytes } = named;
  if (!cipher.startsWith("aes-")) {
    throw new UnsupportedError(path, `is encrypted with ${cipher}, which is not supported`);
  }
  if (ivGenerator === "essiv") {
    const size = hashSize(ivHash ?? "sha256");
    if (KEY_BYTES["aes"]?.includes(size) !== true) {
      throw new FormatError(path, `essiv needs an AES key, ${ivHash} has ${size} bytes`);
    }
  }
  return { keyBytes, mode, ivGenerator, ivHash };
}

/** A header's cipher_mode. */
export function modeName({ mode, ivGenerator, ivHash }: CipherSuite): string {
  return `${mode}-${ivGenerator}${ivGenerator === "essiv" ? `:${ivHash}` : ""}`;
}

export function findHash(name: string | undefined): HashName | undefined {
  return HASHES.find((hash) => hash === name);
}

/** Bytes. */
export function hashSize(hash: HashName): number {
  return HASH_SIZES[hash];
}
