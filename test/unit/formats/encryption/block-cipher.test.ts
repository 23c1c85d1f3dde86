/** Block ciphers against vectors that were published with them, and what is said where one is missing. */

import { createCipheriv } from "node:crypto";
import { afterEach, describe, expect, it, vi } from "vitest";
import { BlockCipher } from "../../../../src/formats/encryption/block-cipher.ts";
import * as libcrypto from "../../../../src/syscalls/libcrypto.ts";
import { NativeBuffer } from "../../../../src/syscalls/native-buffer.ts";

vi.mock("../../../../src/syscalls/libcrypto.ts", { spy: true });

afterEach(() => {
  vi.restoreAllMocks();
});

describe("a block cipher", () => {
  it.each([
    // FIPS 197, C.1 to C.3.
    ["aes", 16, "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"],
    ["aes", 24, "00112233445566778899aabbccddeeff", "dda97ca4864cdfe06eaf70a0ec0d7191"],
    ["aes", 32, "00112233445566778899aabbccddeeff", "8ea2b7ca516745bfeafc49904b496089"],
  ] as const)(
    "encrypts and decrypts as its vectors say: %s, %i bytes of key",
    (name, keySize, plain, encrypted) => {
      const key = Uint8Array.from({ length: keySize }, (_, index) => index);
      expectVector(new BlockCipher(name, key), plain, encrypted);
    },
  );

  it("encrypts and decrypts CAST5 as RFC 2144, B.1, says", () => {
    const key = Buffer.from("0123456712345678234567893456789a", "hex");
    expectVector(new BlockCipher("cast5", key), "0123456789abcdef", "238b4fe5847e44b2");
  });

  it("does not make the old ciphers available to the rest of the process", () => {
    new BlockCipher("cast5", new Uint8Array(16));
    expect(() => createCipheriv("cast5-ecb", new Uint8Array(16), null)).toThrow(/unsupported/i);
  });

  it.each([
    ["no libcrypto", undefined, /libcrypto\.so\.3: not found/],
    [
      "no legacy provider",
      0,
      /libcrypto\.so\.3: CAST5 is in the legacy provider.*cannot be loaded/,
    ],
  ] as const)("says what is missing: %s", (_, cast5Ecb, reason) => {
    const found = libcrypto.loadLibcrypto();
    const functions = found && cast5Ecb === 0 ? { ...found, cast5Ecb: () => cast5Ecb } : undefined;
    vi.mocked(libcrypto.loadLibcrypto).mockReturnValueOnce(functions);
    expect(() => new BlockCipher("cast5", new Uint8Array(16))).toThrow(
      expect.objectContaining({ name: "UnsupportedError", message: expect.stringMatching(reason) }),
    );
  });
});

describe("a block cipher that is freed", () => {
  it("gives each of its contexts back, once, and encrypts no more", () => {
    const functions = libcrypto.loadLibcrypto();
    if (functions === undefined) expect.fail("no libcrypto");
    const made: number[] = [];
    const freed: number[] = [];
    vi.mocked(libcrypto.loadLibcrypto).mockReturnValueOnce({
      ...functions,
      newContext: () => {
        const context = functions.newContext();
        made.push(context);
        return context;
      },
      freeContext: (context) => {
        freed.push(context);
        functions.freeContext(context);
      },
    });
    const cipher = new BlockCipher("aes", new Uint8Array(16));
    cipher.free();
    cipher.free();
    expect(made).toHaveLength(2);
    expect(freed.sort()).toEqual(made.sort());
    const buffer = NativeBuffer.allocate(16);
    expect(() => cipher.encrypt(buffer, 0, 16)).toThrow(/freed/);
    expect(() => cipher.decrypt(buffer, 0, 16)).toThrow(/freed/);
  });
});

/** Several blocks at once, in place and not at the start. */
function expectVector(cipher: BlockCipher, plain: string, encrypted: string): void {
  const block = Buffer.from(plain, "hex");
  const blocks = Buffer.concat([block, block, block]);
  const buffer = NativeBuffer.allocate(blocks.length + 8);
  buffer.bytes.set(blocks, 8);
  cipher.encrypt(buffer, 8, blocks.length);
  expect(Buffer.from(buffer.bytes).toString("hex")).toBe("00".repeat(8) + encrypted.repeat(3));
  cipher.decrypt(buffer, 8, blocks.length);
  expect(Buffer.from(buffer.bytes).toString("hex")).toBe("00".repeat(8) + plain.repeat(3));
}
