/**
 * Block ciphers of OpenSSL's libcrypto, in place and without garbage: Node exports the one that it is built
 * with. Source: evp.h, provider.h.
 */

import { findLibrary, hasFunction, type Library } from "./shared-library.ts";

/** Addresses are numbers; functions that return an int return 1 if they succeed. */
export interface LibcryptoFunctions {
  /** EVP_CIPHER_CTX *EVP_CIPHER_CTX_new(void); 0: out of memory */
  newContext(): number;
  /** void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *ctx); what it holds of the key is overwritten */
  freeContext(context: number): void;
  /** const EVP_CIPHER *EVP_aes_128_ecb(void), and so on; by the bytes of the key */
  readonly aesEcb: Readonly<Record<number, () => number>>;
  /** const EVP_CIPHER * of CAST5-ECB; 0: the legacy provider, which has it, cannot be loaded */
  cast5Ecb(): number;
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
    freeContext: library.func("void EVP_CIPHER_CTX_free(uintptr_t ctx)"),
    aesEcb: {
      16: library.func("uintptr_t EVP_aes_128_ecb()"),
      24: library.func("uintptr_t EVP_aes_192_ecb()"),
      32: library.func("uintptr_t EVP_aes_256_ecb()"),
    },
    cast5Ecb: () => fetchLegacyCipher(library, "CAST5-ECB"),
    init: library.func(
      "int EVP_CipherInit_ex(uintptr_t ctx, uintptr_t type, uintptr_t impl, uintptr_t key, uintptr_t iv, int enc)",
    ),
    setPadding: library.func("int EVP_CIPHER_CTX_set_padding(uintptr_t ctx, int pad)"),
    update: library.func(
      "int EVP_CipherUpdate(uintptr_t ctx, uintptr_t out, uintptr_t outl, uintptr_t in, int inl)",
    ),
  };
}

/**
 * A cipher of OpenSSL's legacy provider, which is in a library context of its own: to the rest of the
 * process, node:crypto too, the old algorithms stay what they are, refused. The context, some 11 KB, lives as
 * long as the process.
 *
 * @returns the address of an EVP_CIPHER; 0: there is none
 */
function fetchLegacyCipher(library: Library, name: string): number {
  if (!hasFunction(library, "OSSL_PROVIDER_load")) return 0;
  const newLibraryContext = library.func("uintptr_t OSSL_LIB_CTX_new()");
  const loadProvider = library.func("uintptr_t OSSL_PROVIDER_load(uintptr_t libctx, str name)");
  const fetchCipher = library.func(
    "uintptr_t EVP_CIPHER_fetch(uintptr_t libctx, str algorithm, uintptr_t properties)",
  );
  const context: number = newLibraryContext();
  if (context === 0 || loadProvider(context, "legacy") === 0) return 0;
  return fetchCipher(context, name, 0);
}
