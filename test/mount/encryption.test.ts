// Encrypted images through a mount: the same bytes as QEMU, and a passphrase that nobody else gets to see.

import { createReadStream, readFileSync, writeFileSync } from "node:fs";
import { open, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  createEncryptedImage,
  encryptedArguments,
  PASSPHRASE,
} from "../support/encrypted-image.ts";
import { type MountOptions, mounted } from "../support/mounted.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport } from "../support/transport.ts";

const MIB = 2 ** 20;
const SIZE = 8 * MIB;

const METHODS = casesOfTransport(
  "encryption",
  [
    ["LUKS", ["encrypt.format=luks", "encrypt.iter-time=0"]],
    ["AES", ["encrypt.format=aes"]],
  ] as const,
  1,
);

describe.each(METHODS)("a mount of an image that is encrypted with %s", (_, options) => {
  let directory = "";
  let image = "";
  let secret = "";

  beforeAll(async () => {
    directory = await makeScratch("encrypted-mount");
    image = join(directory, "vm.qcow2");
    secret = join(directory, "secret");
    writeFileSync(secret, PASSPHRASE);
    await createEncryptedImage(image, [...options, "encrypt.key-secret=key"], String(SIZE));
    const commands = ["write -P 17 0 3M", "write -P 18 5M 70k", "write -z 1M 100k"];
    const args = commands.flatMap((command) => ["-c", command]);
    await run("qemu-io", [...args, ...encryptedArguments(image)]);
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  async function converted(): Promise<Buffer> {
    const flat = join(directory, "flat");
    await run("qemu-img", ["convert", "-O", "raw", ...encryptedArguments(image), flat]);
    return readFileSync(flat);
  }

  const secretMount = (): MountOptions => ({ args: ["--secret", secret] });

  it("shows what qemu-img convert writes, also where reads do not start with a sector", async () => {
    const wanted = await converted();
    await mounted([image], { args: ["-r", "--secret", secret] }, async (mount) => {
      const device = mount.device(image);
      expect(readFileSync(device).equals(wanted)).toBe(true);
      const pieces: Buffer[] = [];
      const stream = createReadStream(device, { start: 12_345, highWaterMark: 70_001 });
      for await (const piece of stream) pieces.push(Buffer.from(piece));
      expect(Buffer.concat(pieces).equals(wanted.subarray(12_345))).toBe(true);
    });
  });

  it("keeps what many write at once to parts of the same sectors", async () => {
    const content = await converted();
    const random = new Random("encrypted mount");
    await mounted([image], secretMount(), async (mount) => {
      const file = await open(mount.device(image), "r+");
      try {
        // Pieces of one to three bytes after each other: most sectors are written by several.
        const writes: Promise<unknown>[] = [];
        for (let offset = 2 * MIB; offset < 2 * MIB + 4096; ) {
          const bytes = random.bytes(random.between(1, 700));
          bytes.copy(content, offset);
          writes.push(file.write(bytes, 0, bytes.length, offset));
          offset += bytes.length;
        }
        for (let at = 0; at < 12; at++) {
          const bytes = random.bytes(random.between(1, 100_000));
          const offset = 6 * MIB + at * 100_000;
          bytes.copy(content, offset);
          writes.push(file.write(bytes, 0, bytes.length, offset));
        }
        await Promise.all(writes);
        await file.sync();
      } finally {
        await file.close();
      }
    });
    expect((await converted()).equals(content)).toBe(true);
    await run("qemu-img", ["check", "-q", ...encryptedArguments(image)]);
  });

  it("has its passphrase neither among the arguments of the daemon nor in its environment", async () => {
    const visible = (pid: number): string =>
      ["cmdline", "environ"].map((name) => readFileSync(`/proc/${pid}/${name}`, "latin1")).join();
    await mounted([image], { env: { TSIMGFS_SECRET: PASSPHRASE } }, async (mount) => {
      expect(readFileSync(mount.device(image)).length).toBe(SIZE);
      expect(visible(mount.daemonPid())).not.toContain(PASSPHRASE);
    });
  });
});
