// What changes an encrypted image as a whole leaves, or makes, the disk that QEMU reads with the same passphrase.

import fs from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  createEncryptedImage,
  encryptedArguments,
  encryptedSource,
  PASSPHRASE,
  SECRET_OBJECT,
} from "../support/encrypted-image.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { tsimgfs } from "../support/tsimgfs.ts";

/** Bytes of the disks, in digits: as the images of other tests, which are made once. */
const SIZE = String(4 * 2 ** 20);
const KINDS = byScale(["luks"], ["luks", "aes"]);

describe.each(KINDS)("an image encrypted with %s", (kind) => {
  let directory = "";
  let secret = "";

  beforeAll(async () => {
    directory = await makeScratch("encrypted-operations");
    secret = join(directory, "secret");
    fs.writeFileSync(secret, PASSPHRASE);
  });

  afterAll(() => {
    fs.rmSync(directory, { recursive: true, force: true });
  });

  const pathOf = (name: string): string => join(directory, name);

  /** @param backing none: the image stands alone */
  async function make(name: string, backing: string | undefined, ...commands: readonly string[]) {
    const iterTime = kind === "luks" ? ["encrypt.iter-time=0"] : [];
    const options = [`encrypt.format=${kind}`, ...iterTime, "encrypt.key-secret=key"];
    await createEncryptedImage(pathOf(name), options, SIZE);
    if (backing !== undefined) {
      const rebase = ["rebase", "-u", "-b", backing, "-F", "qcow2"];
      await run("qemu-img", [...rebase, ...encryptedArguments(pathOf(name))]);
    }
    const work = commands.flatMap((command) => ["-c", command]);
    await run("qemu-io", [...work, ...SECRET_OBJECT, "--image-opts", sourceOf(name, backing)]);
  }

  function sourceOf(name: string, backing: string | undefined): string {
    const below = backing === undefined ? "" : ",backing.encrypt.key-secret=key";
    return encryptedSource(pathOf(name)) + below;
  }

  /** The disk, by QEMU. */
  async function contentOf(name: string, backing?: string): Promise<Buffer> {
    const source = ["--image-opts", sourceOf(name, backing)];
    await run("qemu-img", ["convert", ...SECRET_OBJECT, "-O", "raw", ...source, pathOf("flat")]);
    return fs.readFileSync(pathOf("flat"));
  }

  async function expectSound(name: string, backing?: string): Promise<void> {
    const source = ["--image-opts", sourceOf(name, backing)];
    await run("qemu-img", ["check", "-q", ...SECRET_OBJECT, ...source]);
  }

  const BASE = ["write -P 1 0 1M", "write -P 2 2M 300k"];
  const OVERLAY = ["write -P 3 100k 70k", "write -z 512k 64k", "write -P 4 2200k 1k"];

  it("is amended: version, refcount width, size", async () => {
    await make("base.qcow2", undefined, ...BASE);
    await make("top.qcow2", "base.qcow2", ...OVERLAY);
    const wanted = await contentOf("top.qcow2", "base.qcow2");
    const amend = (options: string): Promise<unknown> =>
      tsimgfs(["amend", "--secret", secret, "-o", options, pathOf("top.qcow2")]);
    await amend("refcount_bits=32,size=5M");
    // Zero clusters over a backing file become data.
    await amend("refcount_bits=16,compat=0.10,size=4M");
    expect((await contentOf("top.qcow2", "base.qcow2")).equals(wanted)).toBe(true);
    await expectSound("top.qcow2", "base.qcow2");
  });

  it("is committed into an encrypted one", async () => {
    await make("base.qcow2", undefined, ...BASE);
    await make("top.qcow2", "base.qcow2", ...OVERLAY);
    const wanted = await contentOf("top.qcow2", "base.qcow2");
    await tsimgfs(["commit", "-q", "--secret", secret, pathOf("top.qcow2")]);
    expect((await contentOf("base.qcow2")).equals(wanted)).toBe(true);
    expect((await contentOf("top.qcow2", "base.qcow2")).equals(wanted)).toBe(true);
    await expectSound("base.qcow2");
  });

  it("is rebased onto another encrypted one, and onto none", async () => {
    await make("base.qcow2", undefined, ...BASE);
    await make("other.qcow2", undefined, "write -P 1 0 700k", "write -P 9 3M 1M");
    await make("top.qcow2", "base.qcow2", ...OVERLAY);
    const wanted = await contentOf("top.qcow2", "base.qcow2");
    const rebase = ["rebase", "-q", "--secret", secret, "-F", "qcow2", "-b"];
    await tsimgfs([...rebase, "other.qcow2", pathOf("top.qcow2")], { cwd: directory });
    expect((await contentOf("top.qcow2", "other.qcow2")).equals(wanted)).toBe(true);
    await tsimgfs(["rebase", "-q", "--secret", secret, "-b", "", pathOf("top.qcow2")]);
    expect((await contentOf("top.qcow2")).equals(wanted)).toBe(true);
    await expectSound("top.qcow2");
  });

  it("gets back a snapshot's disk", async () => {
    await make("top.qcow2", undefined, ...BASE);
    const wanted = await contentOf("top.qcow2");
    const snapshot = (option: string): Promise<unknown> =>
      tsimgfs(["snapshot", option, "one", pathOf("top.qcow2")]);
    await snapshot("-c");
    const writes = ["-c", "write -P 5 50k 1M", "-c", "write -P 6 3M 64k"];
    await tsimgfs(["io", "--secret", secret, ...writes, pathOf("top.qcow2")]);
    const changed = await contentOf("top.qcow2");
    expect(changed.subarray(50 * 1024, 51 * 1024).equals(Buffer.alloc(1024, 5))).toBe(true);
    await snapshot("-a");
    expect((await contentOf("top.qcow2")).equals(wanted)).toBe(true);
    await snapshot("-d");
    expect((await contentOf("top.qcow2")).equals(wanted)).toBe(true);
    await expectSound("top.qcow2");
  });
});
