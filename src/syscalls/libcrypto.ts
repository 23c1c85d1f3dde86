/**
 * AES of OpenSSL's libcrypto, in place and without garbage: Node exports the one that it is built with.
 * Source: evp.h.
 */

import { findLibrary } from "./shared-library.ts";

/** Addresses are numbers; functions that return an int return 1 if they succeed. */
export interface LibcryptoFunctions {
  /** EVP_CIPHER_CTX *EVP_CIPHER_CTX_new(void); 0: out of memory */
  newContext(): number;
  /** const EVP_CIPHER *EVP_aes_128_ecb(void), and so on; by the bytes of the key */
  readonly aesEcb: Readonly<Record<number, () => number>>;
  /** int EVP_CipherInit_ex(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *type, ENGINE *impl, const unsigned char *key, const unsigned char *iv, int enc) */
  init(
    context: number,
    type: number,
    engine: number,
    key: number,
    iv: number,
    encrypts: number,
  ): number;
  /** int EVP_CIPHER_CTX_set_padding(EVP_CIPHER_CTX *ctx, int pad) */
  setPadding(context: number, pad: number): number;
  /** int EVP_CipherUpdate(EVP_CIPHER_CTX *ctx, unsigned char *out, int *outl, const unsigned char *in, int inl) */
  update(context: number, out: number, outLength: number, input: number, length: number): number;
}

const PLACES = [
  { library: undefined, prefix: "" },
  { library: "libcrypto.so.3", prefix: "" },
];

/** The functions, or undefined if neither this process nor the system has them. */
export function loadLibcrypto(): LibcryptoFunctions | undefined {
  const found = findLibrary(PLACES, "EVP_CipherUpdate");
  if (found === undefined) return undefined;
  const { library } = found;
  return {
    newContext: library.func("uintptr_t EVP_CIPHER_CTX_new()"),
    aesEcb: {
      16: library.func("uintptr_t EVP_aes_128_ecb()"),
      24: library.func("uintptr_t EVP_aes_192_ecb()"),
      32: library.func("uintptr_t EVP_aes_256_ecb()"),
    },
    init: library.func(
      "int EVP_CipherInit_ex(uintptr_t ctx, uintptr_t type, uintptr_t impl, uintptr_t key, uintptr_t iv, int enc)",
    ),
    setPadding: library.func("int EVP_CIPHER_CTX_set_padding(uintptr_t ctx, int pad)"),
    update: library.func(
      "int EVP_CipherUpdate(uintptr_t ctx, uintptr_t out, uintptr_t outl, uintptr_t in, int inl)",
    ),
  };
}
