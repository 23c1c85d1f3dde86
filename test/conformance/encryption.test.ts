// Encrypted images, LUKS and legacy AES: what QEMU encrypts is read, what is encrypted here QEMU reads.

import fs from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { attachChain } from "../../src/block/attach-disk.ts";
import { Disk } from "../../src/block/disk.ts";
import { closeChain, openChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { parseMap } from "../support/disk-map.ts";
import {
  createEncryptedImage,
  encryptedArguments,
  encryptedSource,
  PASSPHRASE,
  SECRET_OBJECT,
} from "../support/encrypted-image.ts";
import { Random } from "../support/random.ts";
import { attempt, run, runJson } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { readDisk, WritableDisk } from "../unit/block/writable-disk.ts";

const MIB = 2 ** 20;
/** Bytes of the disks: clusters on both sides of the LUKS header. */
const SIZE = 4 * MIB;
const SECRETS = [Buffer.from(PASSPHRASE)];

/** Creation options without their prefix; iter-time=0 is the least work. */
type Kind = readonly [name: string, options: Readonly<Record<string, string>>];

const LUKS: readonly Kind[] = [
  ["aes-256-xts-plain64", {}],
  ["aes-128-xts-plain", { "cipher-alg": "aes-128", "ivgen-alg": "plain" }],
  ["aes-192-xts-plain64, sha512", { "cipher-alg": "aes-192", "hash-alg": "sha512" }],
  ["aes-256-xts-essiv:sha256", { "ivgen-alg": "essiv", "ivgen-hash-alg": "sha256" }],
  [
    "aes-256-cbc-essiv:sha256, sha1",
    {
      "cipher-mode": "cbc",
      "ivgen-alg": "essiv",
      "ivgen-hash-alg": "sha256",
      "hash-alg": "sha1",
    },
  ],
  [
    "aes-128-cbc-essiv:md5",
    {
      "cipher-alg": "aes-128",
      "cipher-mode": "cbc",
      "ivgen-alg": "essiv",
      "ivgen-hash-alg": "md5",
    },
  ],
  ["aes-192-cbc-plain64", { "cipher-alg": "aes-192", "cipher-mode": "cbc" }],
  ["aes-128-ecb, sha384", { "cipher-alg": "aes-128", "cipher-mode": "ecb", "hash-alg": "sha384" }],
  ["aes-256-ctr-plain64, md5", { "cipher-mode": "ctr", "hash-alg": "md5" }],
  [
    "aes-128-ctr-essiv:md5, sha224",
    {
      "cipher-alg": "aes-128",
      "cipher-mode": "ctr",
      "ivgen-alg": "essiv",
      "ivgen-hash-alg": "md5",
      "hash-alg": "sha224",
    },
  ],
  [
    "aes-256-cbc-plain, ripemd160",
    { "cipher-mode": "cbc", "ivgen-alg": "plain", "hash-alg": "ripemd160" },
  ],
  ["cast5-128-cbc-plain64", { "cipher-alg": "cast5-128", "cipher-mode": "cbc" }],
  [
    "cast5-128-cbc-plain, sha512",
    { "cipher-alg": "cast5-128", "cipher-mode": "cbc", "ivgen-alg": "plain", "hash-alg": "sha512" },
  ],
  [
    "cast5-128-cbc-essiv:md5",
    {
      "cipher-alg": "cast5-128",
      "cipher-mode": "cbc",
      "ivgen-alg": "essiv",
      "ivgen-hash-alg": "md5",
    },
  ],
  ["cast5-128-ctr-plain64", { "cipher-alg": "cast5-128", "cipher-mode": "ctr" }],
  [
    "cast5-128-ctr-plain",
    { "cipher-alg": "cast5-128", "cipher-mode": "ctr", "ivgen-alg": "plain" },
  ],
  [
    "cast5-128-ctr-essiv:md5, sha1",
    {
      "cipher-alg": "cast5-128",
      "cipher-mode": "ctr",
      "ivgen-alg": "essiv",
      "ivgen-hash-alg": "md5",
      "hash-alg": "sha1",
    },
  ],
  ["cast5-128-ecb", { "cipher-alg": "cast5-128", "cipher-mode": "ecb" }],
  [
    "cast5-128-ecb-plain",
    { "cipher-alg": "cast5-128", "cipher-mode": "ecb", "ivgen-alg": "plain" },
  ],
  [
    "cast5-128-ecb-essiv:md5",
    {
      "cipher-alg": "cast5-128",
      "cipher-mode": "ecb",
      "ivgen-alg": "essiv",
      "ivgen-hash-alg": "md5",
    },
  ],
];

const QUICK = [
  "aes-256-xts-plain64",
  "aes-192-xts-plain64, sha512",
  "aes-256-cbc-essiv:sha256, sha1",
  "aes-128-ctr-essiv:md5, sha224",
  "cast5-128-cbc-essiv:md5",
  "cast5-128-ctr-plain64",
];
/** With a NUL; not UTF-8; a surrogate. */
const NOT_FOR_QEMU = ["a\0b", "\xff\xfe", "\xed\xa0\x80"].map((text) =>
  Buffer.from(text, "latin1"),
);

const KINDS = byScale(
  LUKS.filter(([name]) => QUICK.includes(name)),
  LUKS,
);

/** How the image as a whole is made, besides its cipher. */
const SHAPES: readonly Kind[] = byScale(
  [
    ["extended L2", { extended_l2: "on" }],
    ["an external data file", { data_file: "shape.data" }],
  ],
  [
    ["extended L2", { extended_l2: "on" }],
    ["an external data file", { data_file: "shape.data" }],
    ["a raw external data file", { data_file: "shape.data", data_file_raw: "on" }],
    ["version 2", { compat: "0.10" }],
    ["clusters of 512 bytes", { cluster_size: "512" }],
    ["clusters of 2 MiB", { cluster_size: "2M" }],
    ["preallocated tables", { preallocation: "metadata" }],
  ],
);

function luksOptions(options: Readonly<Record<string, string>>): string[] {
  const list = Object.entries(options).map(([name, value]) => `encrypt.${name}=${value}`);
  return ["encrypt.format=luks", "encrypt.iter-time=0", ...list];
}

function shapeOptions(options: Readonly<Record<string, string>>): string[] {
  return Object.entries(options).map(([name, value]) => `${name}=${value}`);
}

describe("an encrypted image", () => {
  let directory = "";
  let flat = "";
  let secret = "";

  beforeAll(async () => {
    directory = await makeScratch("encryption");
    flat = join(directory, "flat");
    secret = join(directory, "secret");
    fs.writeFileSync(secret, PASSPHRASE);
  });

  afterAll(() => {
    fs.rmSync(directory, { recursive: true, force: true });
  });

  const pathOf = (name: string): string => join(directory, name);

  async function make(name: string, options: readonly string[], size = SIZE): Promise<string> {
    const path = pathOf(name);
    const all = [...options, "encrypt.key-secret=key"];
    await createEncryptedImage(path, all, String(size), [], { cwd: directory });
    return path;
  }

  /** As `make`, by our own command. */
  async function makeHere(name: string, options: readonly string[]): Promise<string> {
    const path = pathOf(name);
    fs.rmSync(path, { force: true });
    const create = ["create", "-q", "-f", "qcow2", "--secret", secret, "-o", options.join(",")];
    await tsimgfs([...create, path, String(SIZE)], { cwd: directory });
    return path;
  }

  /** The whole disk, by QEMU. */
  async function converted(path: string, more: readonly string[] = []): Promise<Buffer> {
    const args = ["convert", ...more, "-O", "raw", ...encryptedArguments(path), flat];
    await run("qemu-img", args, { cwd: directory });
    return fs.readFileSync(flat);
  }

  async function expectSound(path: string): Promise<void> {
    await run("qemu-img", ["check", "-q", ...encryptedArguments(path)], { cwd: directory });
    await tsimgfs(["check", path]);
  }

  function qemuIo(path: string, commands: readonly string[]): Promise<unknown> {
    const args = commands.flatMap((command) => ["-c", command]);
    return run("qemu-io", [...args, ...encryptedArguments(path)], { cwd: directory });
  }

  /** Random work at offsets that no unit divides, the same on a buffer. */
  function work(disk: WritableDisk, content: Buffer, random: Random): void {
    for (let step = 0; step < byScale(30, 150); step++) {
      const length = random.pick([1, 511, 512, 4096, 65536, 100_000, 300_001]);
      const exact = random.below(SIZE - length);
      const offset = random.pick([exact, exact - (exact % 512), exact - (exact % 65536)]);
      if (random.below(5) === 0) {
        disk.disk.writeZeroes(offset, length, { unmap: true });
        content.fill(0, offset, offset + length);
      } else {
        const bytes = random.bytes(length);
        disk.write(offset, bytes);
        bytes.copy(content, offset);
      }
    }
  }

  /** QEMU writes, ours reads; ours writes, QEMU reads. */
  async function expectBothAgree(path: string, random: Random): Promise<void> {
    await qemuIo(path, [
      "write -P 17 0 64k",
      "write -P 18 1M 300k",
      `write -P 19 ${SIZE - 512} 512`,
      "write -z 1100k 64k",
      "discard 1200k 64k",
    ]);
    const before = await converted(path);
    const disk = new WritableDisk(path, { secrets: SECRETS });
    try {
      expect(disk.read().equals(before)).toBe(true);
      expect(disk.read(12_345, 70_001).equals(before.subarray(12_345, 82_346))).toBe(true);
      work(disk, before, random);
      expect(disk.read().equals(before)).toBe(true);
    } finally {
      disk.close();
    }
    expect((await converted(path)).equals(before)).toBe(true);
    await expectSound(path);
  }

  it.each(KINDS)("is read and written as QEMU does: %s", async (name, options) => {
    const path = await make("cipher.qcow2", luksOptions(options));
    await expectBothAgree(path, new Random(name));
  });

  it.each(SHAPES)("is read and written as QEMU does: LUKS with %s", async (name, options) => {
    const path = await makeHere("shape.qcow2", [...luksOptions({}), ...shapeOptions(options)]);
    await expectBothAgree(path, new Random(name));
  });

  it.each(SHAPES)("is read and written as QEMU does: AES with %s", async (name, options) => {
    const path = await make("shape.qcow2", ["encrypt.format=aes", ...shapeOptions(options)]);
    await expectBothAgree(path, new Random(name));
  });

  it.each(KINDS)("is made for QEMU: %s", async (name, options) => {
    const path = await makeHere("made.qcow2", luksOptions(options));
    await expectSound(path);
    const theirs = await runJson("qemu-img", ["info", "--output=json", path]);
    const ours: unknown = JSON.parse((await tsimgfs(["info", "--output=json", path])).stdout);
    expect(ours).toEqual({ ...Object(theirs) });
    await expectBothAgree(path, new Random(`made ${name}`));
  });

  it.each(byScale(["falloc"], ["metadata", "falloc", "full"]))(
    "is made with preallocation=%s, its first data behind the LUKS header",
    async (mode) => {
      const path = pathOf("preallocated.qcow2");
      fs.rmSync(path, { force: true });
      const list = [...luksOptions({}), `preallocation=${mode}`].join(",");
      await tsimgfs(["create", "-q", "-f", "qcow2", "--secret", secret, "-o", list, path, "4M"]);
      await expectBothAgree(path, new Random(mode));
    },
  );

  it("is made with the legacy method, also by its old name", async () => {
    for (const option of ["encrypt.format=aes", "encryption=on"]) {
      const path = pathOf("legacy.qcow2");
      fs.rmSync(path, { force: true });
      await tsimgfs(["create", "-q", "-f", "qcow2", "-o", option, path, "4M"]);
      await expectBothAgree(path, new Random(option));
    }
  });

  it("shows its snapshots", async () => {
    const path = await make("snapshots.qcow2", luksOptions({}));
    await qemuIo(path, ["write -P 1 0 1M"]);
    await run("qemu-img", ["snapshot", "-c", "one", ...encryptedArguments(path)]);
    await qemuIo(path, ["write -P 2 100k 1M"]);
    const wanted = await converted(path, ["-l", "snapshot.name=one"]);
    const disk = new WritableDisk(path, { secrets: SECRETS });
    try {
      disk.fill(50_000, 200_000, 3);
      expect(readDisk(disk.disk.openSnapshot(0)).equals(wanted)).toBe(true);
    } finally {
      disk.close();
    }
    expect((await converted(path, ["-l", "snapshot.name=one"])).equals(wanted)).toBe(true);
    await expectSound(path);
  });

  it("may have encrypted images below it, with passphrases of their own", async () => {
    const bottom = await make("bottom.qcow2", ["encrypt.format=aes"]);
    await qemuIo(bottom, ["write -P 1 0 2M"]);
    const middle = await make("middle.qcow2", luksOptions({}));
    await run("qemu-img", [
      "rebase",
      "-u",
      "-b",
      "bottom.qcow2",
      "-F",
      "qcow2",
      ...encryptedArguments(middle),
    ]);
    await qemuIo(bottom, ["write -P 2 1M 64k"]);
    const other = Buffer.from("another");
    const otherFile = pathOf("other-secret");
    fs.writeFileSync(otherFile, other);
    const top = pathOf("top.qcow2");
    const list = luksOptions({}).join(",");
    await tsimgfs([
      ...["create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2"],
      ...["--secret", otherFile, "-o", list, top],
    ]);
    const content = await chainContent(bottom, middle);
    // Nothing would tell if the legacy image got the wrong one.
    expect(() => new WritableDisk(top, { secrets: [...SECRETS, other] })).toThrow(/legacy AES/);
    const backingSecrets = [...SECRETS, ...SECRETS];
    const disk = new WritableDisk(top, { secrets: [other], backingSecrets });
    try {
      expect(disk.read(0, MIB).equals(content.subarray(0, MIB))).toBe(true);
      disk.fill(70_000, 70_000, 9);
      content.fill(9, 70_000, 140_000);
      expect(disk.read().equals(content)).toBe(true);
    } finally {
      disk.close();
    }
    const source = {
      ...{ driver: "qcow2", "encrypt.key-secret": "other", "file.filename": top },
      ...{ "backing.encrypt.key-secret": "key", "backing.backing.encrypt.key-secret": "key" },
    };
    const options = Object.entries(source).map(([name, value]) => `${name}=${value}`);
    await run("qemu-img", [
      ...["convert", ...SECRET_OBJECT, "--object", `secret,id=other,data=${other}`],
      ...["-O", "raw", "--image-opts", options.join(","), flat],
    ]);
    expect(fs.readFileSync(flat).equals(content)).toBe(true);
  });

  async function chainContent(bottom: string, middle: string): Promise<Buffer> {
    const source = `${encryptedSource(middle)},backing.encrypt.key-secret=key`;
    await run("qemu-img", [
      ...["convert", ...SECRET_OBJECT, "-O", "raw", "--image-opts", source, flat],
    ]);
    expect(fs.existsSync(bottom)).toBe(true);
    return fs.readFileSync(flat);
  }

  it("needs no passphrase to be described, mapped, counted and checked", async () => {
    const path = await make("closed.qcow2", luksOptions({}));
    await qemuIo(path, ["write -P 1 1M 1M", "write -z 3M 64k"]);
    await tsimgfs(["info", path]);
    await tsimgfs(["stats", path]);
    await tsimgfs(["check", path]);
    const ours: unknown = JSON.parse((await tsimgfs(["map", "--output=json", path])).stdout);
    const theirs = await runJson("qemu-img", ["map", "--output=json", ...encryptedArguments(path)]);
    expect(parseMap(ours)).toEqual(parseMap(theirs));
    const chain = openChain(path, {
      ...{ format: undefined, backingPolicy: "any", forceShare: false, onlyTables: true },
    });
    try {
      const disk = Disk.readOnly(attachChain(chain.layers, { clusterCache: new ClusterCache() }));
      expect(() => readDisk(disk, MIB, 512)).toThrow(/without its key/);
    } finally {
      closeChain(chain);
    }
  });

  it("takes its passphrase from a file, from standard input or from the environment", async () => {
    const path = await make("secret.qcow2", luksOptions({}));
    const read = ["io", "-r", "-c", "read -P 0 0 512", path];
    await tsimgfs([...read, "--secret", secret]);
    await tsimgfs([...read, "--secret", "-"], { input: PASSPHRASE });
    await tsimgfs([...read, "--secret", "-"], { input: `${PASSPHRASE}\n` });
    await tsimgfs(read, { env: { TSIMGFS_SECRET: PASSPHRASE } });
    const wrong = pathOf("wrong");
    fs.writeFileSync(wrong, "wrong");
    await tsimgfs([...read, "--secret", wrong, "--secret", secret]);
  });

  it("says what is wrong with a passphrase, in one line, and is not touched", async () => {
    const path = await make("refused.qcow2", luksOptions({}));
    const before = fs.readFileSync(path);
    const write = ["io", "-c", "write 0 512", path];
    const wrong = pathOf("wrong");
    const secretIs = (text: string | Buffer): string[] => {
      fs.writeFileSync(wrong, text);
      return [...write, "--secret", wrong];
    };
    await expectRefusal(write, ["refused.qcow2: is encrypted (LUKS)", "--secret FILE"]);
    await expectRefusal(secretIs("wrong"), [
      "refused.qcow2: no key slot opens with this passphrase",
    ]);
    await expectRefusal(secretIs(`${PASSPHRASE}\n`), ["ends with a newline, which counts"]);
    // Images may have them that others have made.
    for (const other of ["", ...NOT_FOR_QEMU]) {
      await expectRefusal(secretIs(other), ["no key slot opens with this passphrase"]);
    }
    await expectRefusal(secretIs(Buffer.alloc(65_537, 65)), ["longer than 65536 bytes"]);
    await expectRefusal([...write, "--secret", "/dev/zero"], ["longer than 65536 bytes"]);
    await expectRefusal([...write, "--secret", pathOf("none")], ["none: ", "ENOENT"]);
    expect(fs.readFileSync(path).equals(before)).toBe(true);
  });

  it("has no compressed clusters written to it, but those that are there are read", async () => {
    const path = await make("compressed.qcow2", luksOptions({}));
    // QEMU's tools do not let both meet; its block layer does, and stores streams as they are.
    await qemuIo(path, ["write -c -P 5 0 64k"]);
    const args = ["io", "-c", "write -c -P 6 64k 64k", "-c", "read -P 5 0 64k", path];
    const result = await attemptTsimgfs([...args, "--secret", secret]);
    expect(result.stdout + result.stderr).toMatch(/cannot have compressed clusters/);
    expect(result.stdout).not.toMatch(/Pattern verification failed/);
    await expectSound(path);
  });

  it("may have an empty passphrase, as for QEMU", async () => {
    const empty = pathOf("empty");
    fs.writeFileSync(empty, "");
    const options = "encrypt.format=luks,encrypt.iter-time=10";
    const theirs = pathOf("empty-theirs.qcow2");
    const object = ["--object", `secret,id=key,file=${empty}`];
    const withKey = `${options},encrypt.key-secret=key`;
    await run("qemu-img", ["create", "-q", "-f", "qcow2", ...object, "-o", withKey, theirs, "1M"]);
    const ours = pathOf("empty-ours.qcow2");
    const create = ["create", "-q", "-f", "qcow2", "--secret", empty, "-o", options];
    await tsimgfs([...create, ours, "1M"]);
    for (const path of [theirs, ours]) {
      await tsimgfs(["io", "--secret", empty, "-c", "write -P 5 0 64k", path]);
      const source = ["--image-opts", encryptedSource(path)];
      const read = await run("qemu-io", ["-r", "-c", "read -P 5 0 64k", ...object, ...source]);
      expect(read.stdout).not.toMatch(/failed/);
    }
  });

  it("is not made with a passphrase that QEMU does not take", async () => {
    const bad = pathOf("bad");
    const path = pathOf("new.qcow2");
    for (const bytes of NOT_FOR_QEMU) {
      fs.writeFileSync(bad, bytes);
      const create = ["create", "-q", "-f", "qcow2"];
      const options = ["-o", "encrypt.format=luks,encrypt.iter-time=10"];
      const object = ["--object", `secret,id=key,file=${bad}`];
      const theirs = [...create, ...object, ...options, "-o", "encrypt.key-secret=key", path, "1M"];
      expect((await attempt("qemu-img", theirs)).status).toBe(1);
      fs.rmSync(path, { force: true });
      await expectRefusal(
        [...create, "--secret", bad, ...options, path, "1M"],
        [/new\.qcow2: the new passphrase is not valid UTF-8, or has a NUL/],
      );
      expect(fs.existsSync(path)).toBe(false);
    }
  });

  it("refuses creation options that mean nothing or what there is not", async () => {
    const create = (...options: readonly string[]): string[] => [
      ...["create", "-f", "qcow2", "--secret", secret, "-o", options.join(",")],
      ...[pathOf("new.qcow2"), "1M"],
    ];
    const luks = "encrypt.format=luks";
    await expectRefusal(create(luks, "encrypt.cipher-alg=serpent-256"), [
      "serpent-256 is not one of",
    ]);
    await expectRefusal(create(luks, "encrypt.ivgen-alg=essiv", "encrypt.ivgen-hash-alg=sha1"), [
      "sha1 has 20 bytes",
    ]);
    const cast5 = "encrypt.cipher-alg=cast5-128";
    await expectRefusal(create(luks, cast5), ["xts needs blocks of 16 bytes, cast5 has 8"]);
    await expectRefusal(create(luks, cast5, "encrypt.cipher-mode=cbc", "encrypt.ivgen-alg=essiv"), [
      "essiv needs a key of cast5, 16 bytes: sha256 has 32 bytes",
    ]);
    await expectRefusal(create("encrypt.cipher-alg=aes-128"), ["needs encrypt.format=luks"]);
    await expectRefusal(create("encrypt.format=aes", "encryption=on"), ["contradict each other"]);
    await expectRefusal(create(luks, "encrypt.iter-time=700000"), ["above 600000"]);
    await expectRefusal(
      ["create", "-f", "qcow2", "-o", luks, pathOf("new.qcow2"), "1M"],
      ["needs a passphrase: --secret FILE"],
    );
    expect(fs.existsSync(pathOf("new.qcow2"))).toBe(false);
  });

  it.each(byScale(["serpent-256"], ["serpent-256", "twofish-256"]))(
    "is refused by name: %s",
    async (cipher) => {
      const path = await make("other.qcow2", luksOptions({ "cipher-alg": cipher }));
      await expectRefusal(
        ["io", "-r", "-c", "read 0 512", "--secret", secret, path],
        [`other.qcow2: is encrypted with ${cipher}, which is not supported`],
      );
      const theirs = await runJson("qemu-img", ["info", "--output=json", path]);
      const ours: unknown = JSON.parse((await tsimgfs(["info", "--output=json", path])).stdout);
      expect(ours).toEqual({ ...Object(theirs) });
    },
  );
});
