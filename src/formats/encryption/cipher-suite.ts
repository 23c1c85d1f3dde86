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

/** Block ciphers that OpenSSL has, as LUKS headers name them. */
const ALGORITHM_NAMES = ["aes", "cast5"] as const;
export type CipherAlgorithm = (typeof ALGORITHM_NAMES)[number];

/** Bytes. */
interface AlgorithmSizes {
  readonly blockSize: number;
  readonly keySizes: readonly number[];
}

export const ALGORITHMS: Readonly<Record<CipherAlgorithm, AlgorithmSizes>> = {
  aes: { blockSize: 16, keySizes: [16, 24, 32] },
  cast5: { blockSize: 8, keySizes: [16] },
};

/** A block cipher with what is around it: plain data. */
export interface CipherSuite {
  readonly algorithm: CipherAlgorithm;
  /** Bytes of the key; with XTS, of both keys together. */
  readonly keyBytes: number;
  readonly mode: CipherMode;
  readonly ivGenerator: IvGenerator;
  /** With essiv: what makes its key of the key. */
  readonly ivHash: HashName | undefined;
}

/** What a header says of its cipher, also where we have no such cipher. */
export interface NamedCipher {
  /** Undefined: one that OpenSSL has not. */
  readonly algorithm: CipherAlgorithm | undefined;
  /** As QEMU's options name it, such as aes-256. */
  readonly cipher: string;
  readonly mode: CipherMode;
  readonly ivGenerator: IvGenerator;
  readonly ivHash: HashName | undefined;
  readonly keyBytes: number;
}

/** Key sizes of ciphers that QEMU has and OpenSSL has not, bytes. */
const FOREIGN_KEY_SIZES: ReadonlyMap<string, readonly number[]> = new Map([
  ["serpent", [16, 24, 32]],
  ["twofish", [16, 24, 32]],
]);

/** XTS is of blocks of this size, bytes. Source: IEEE 1619. */
export const XTS_BLOCK_SIZE = 16;

export const CIPHER_NAMES = ["aes-128", "aes-192", "aes-256", "cast5-128"] as const;
export type CipherName = (typeof CIPHER_NAMES)[number];

/** What QEMU's names stand for; key sizes are bytes. */
export const CIPHERS: Readonly<
  Record<CipherName, { readonly algorithm: CipherAlgorithm; readonly keySize: number }>
> = {
  "aes-128": { algorithm: "aes", keySize: 16 },
  "aes-192": { algorithm: "aes", keySize: 24 },
  "aes-256": { algorithm: "aes", keySize: 32 },
  "cast5-128": { algorithm: "cast5", keySize: 16 },
};

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
  const keySize = names.keyBytes / keysOf(mode);
  const algorithm = findAlgorithm(names.cipher);
  const keySizes = algorithm ? ALGORITHMS[algorithm].keySizes : FOREIGN_KEY_SIZES.get(names.cipher);
  if (keySizes?.includes(keySize) !== true) {
    return fail(`cipher "${names.cipher}" with ${names.keyBytes} bytes of key is not known`);
  }
  const cipher = `${names.cipher}-${keySize * 8}`;
  return { algorithm, cipher, mode, ivGenerator, ivHash, keyBytes: names.keyBytes };
}

/**
 * What `SectorCipher` takes.
 *
 * @throws {UnsupportedError} a cipher that OpenSSL has not
 * @throws {FormatError} its parts do not go together
 */
export function suiteOf(named: NamedCipher, path: string): CipherSuite {
  const { algorithm, cipher, mode, ivGenerator, ivHash, keyBytes } = named;
  if (algorithm === undefined) {
    throw new UnsupportedError(path, `is encrypted with ${cipher}, which is not supported`);
  }
  const suite = { algorithm, keyBytes, mode, ivGenerator, ivHash };
  const reason = mismatchOf(suite);
  if (reason !== undefined) throw new FormatError(path, `LUKS header: ${reason}`);
  return suite;
}

/** Why the parts of a suite do not go together, or undefined: they do. The rules are QEMU's. */
export function mismatchOf(suite: CipherSuite): string | undefined {
  const { algorithm, mode, ivGenerator, ivHash } = suite;
  const { blockSize, keySizes } = ALGORITHMS[algorithm];
  if (mode === "xts" && blockSize !== XTS_BLOCK_SIZE) {
    return `xts needs blocks of ${XTS_BLOCK_SIZE} bytes, ${algorithm} has ${blockSize}`;
  }
  if (ivGenerator !== "essiv" || ivHash === undefined) return undefined;
  const size = hashSize(ivHash);
  if (keySizes.includes(size)) return undefined;
  const sizes = keySizes.join(" or ");
  return `essiv needs a key of ${algorithm}, ${sizes} bytes: ${ivHash} has ${size} bytes`;
}

/** A header's cipher_mode. */
export function modeName({ mode, ivGenerator, ivHash }: CipherSuite): string {
  return `${mode}-${ivGenerator}${ivGenerator === "essiv" ? `:${ivHash}` : ""}`;
}

function findAlgorithm(name: string): CipherAlgorithm | undefined {
  return ALGORITHM_NAMES.find((algorithm) => algorithm === name);
}

export function findHash(name: string | undefined): HashName | undefined {
  return HASHES.find((hash) => hash === name);
}

/** Bytes. */
export function hashSize(hash: HashName): number {
  return HASH_SIZES[hash];
}
