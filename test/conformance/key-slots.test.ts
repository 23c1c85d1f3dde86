// Key slots that are made active and inactive by amend: QEMU opens what it should, and nothing else.

import fs from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { AmendOptions } from "../../src/cli/amend-options.ts";
import {
  createEncryptedImage,
  encryptedArguments,
  encryptedSource,
  PASSPHRASE,
  SECRET_OBJECT,
} from "../support/encrypted-image.ts";
import { asArray, asRecord } from "../support/json.ts";
import { imageInfo } from "../support/qemu.ts";
import { attempt, run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const NEW = "another passphrase";
/** Bytes of the disk, in digits: as the images of other tests, which are made once. */
const SIZE = String(4 * 2 ** 20);
/** Bytes of key material in a slot, with a key of 512 bits. */
const MATERIAL = 256_000;
const SECTOR = 512;

describe("tsimgfs amend of key slots", () => {
  let directory = "";
  let path = "";
  let secret = "";
  let newSecret = "";
  let wrong = "";

  beforeAll(async () => {
    directory = await makeScratch("key-slots");
    const write = (name: string, text: string): string => {
      const file = join(directory, name);
      fs.writeFileSync(file, text);
      return file;
    };
    secret = write("secret", PASSPHRASE);
    newSecret = write("new", NEW);
    wrong = write("wrong", "wrong");
    path = join(directory, "disk.qcow2");
  });

  afterAll(() => {
    fs.rmSync(directory, { recursive: true, force: true });
  });

  async function make(): Promise<void> {
    const options = ["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.key-secret=key"];
    await createEncryptedImage(path, options, SIZE);
  }

  function amend(by: string, ...options: readonly string[]): Promise<unknown> {
    return tsimgfs(["amend", "--secret", by, "-o", options.join(","), path]);
  }

  /** Whether QEMU reads what was written with a passphrase. */
  async function opens(passphrase: string): Promise<boolean> {
    const args = ["-r", "-c", "read -P 7 64k 64k", ...encryptedArguments(path, passphrase)];
    return (await attempt("qemu-io", args)).status === 0;
  }

  async function expectSameInfo(): Promise<void> {
    const ours: unknown = JSON.parse((await tsimgfs(["info", "--output=json", path])).stdout);
    expect(ours).toEqual({ ...Object(await imageInfo([path])) });
  }

  /** As QEMU says. */
  async function slots(): Promise<readonly Record<string, unknown>[]> {
    const theirs = await imageInfo([path]);
    const { encrypt } = asRecord(asRecord(asRecord(theirs)["format-specific"])["data"]);
    return asArray(asRecord(encrypt)["slots"]).map(asRecord);
  }

  async function activeSlots(): Promise<number[]> {
    return (await slots()).flatMap(({ active }, index) => (active === true ? [index] : []));
  }

  /** A slot's key material, by sectors. */
  function material(slot: Record<string, unknown> | undefined): string[] {
    const bytes = fs.readFileSync(path);
    const start = bytes.indexOf("LUKS\xba\xbe", 0, "latin1") + Number(slot?.["key-offset"]);
    return Array.from({ length: MATERIAL / SECTOR }, (_, index) => {
      const at = start + index * SECTOR;
      return bytes.subarray(at, at + SECTOR).toString("hex");
    });
  }

  it("adds a passphrase, and removes the first one, of which nothing is left", async () => {
    await make();
    await run("qemu-io", ["-c", "write -P 7 64k 64k", ...encryptedArguments(path)]);
    const add = ["encrypt.state=active", `encrypt.new-secret=${newSecret}`, "encrypt.iter-time=0"];
    await amend(secret, ...add);
    expect(await activeSlots()).toEqual([0, 1]);
    expect([await opens(PASSPHRASE), await opens(NEW), await opens("wrong")]).toEqual([
      ...[true, true, false],
    ]);
    // In both sectors that it lies in.
    await amend(newSecret, ...add, "encrypt.keyslot=6");
    expect(await activeSlots()).toEqual([0, 1, 6]);
    await expectSameInfo();
    await amend(secret, "encrypt.state=inactive", "encrypt.keyslot=1");
    expect(await activeSlots()).toEqual([0, 6]);
    expect(await opens(NEW)).toBe(true);
    const [first] = await slots();
    const before = new Set(material(first));
    await amend(newSecret, "encrypt.state=inactive", `encrypt.old-secret=${secret}`);
    expect(await activeSlots()).toEqual([6]);
    expect([await opens(PASSPHRASE), await opens(NEW)]).toEqual([false, true]);
    expect(material(first).filter((sector) => before.has(sector))).toEqual([]);
    await run("qemu-img", ["check", "-q", ...encryptedArguments(path, NEW)]);
  });

  it("works on the key slots that QEMU has made, and QEMU on ours", async () => {
    await make();
    await run("qemu-io", ["-c", "write -P 7 64k 64k", ...encryptedArguments(path)]);
    const qemuAmend = (options: string): Promise<unknown> => {
      const secrets = [...SECRET_OBJECT, "--object", `secret,id=new,data=${NEW}`];
      const source = ["--image-opts", encryptedSource(path)];
      return run("qemu-img", ["amend", ...secrets, "-o", options, ...source]);
    };
    await qemuAmend("encrypt.state=active,encrypt.new-secret=new,encrypt.iter-time=10");
    await amend(newSecret, "encrypt.state=inactive", "encrypt.keyslot=0");
    expect([await opens(PASSPHRASE), await opens(NEW)]).toEqual([false, true]);
    const add = ["encrypt.state=active", `encrypt.new-secret=${secret}`, "encrypt.iter-time=0"];
    await amend(newSecret, ...add);
    expect(await activeSlots()).toEqual([0, 1]);
    await qemuAmend("encrypt.state=inactive,encrypt.old-secret=new");
    expect(await activeSlots()).toEqual([0]);
    expect([await opens(PASSPHRASE), await opens(NEW)]).toEqual([true, false]);
  });

  it("refuses options that mean nothing", () => {
    const active = `encrypt.state=active,encrypt.new-secret=${newSecret}`;
    const inactive = "encrypt.state=inactive";
    const refusals: readonly (readonly [options: string, reason: RegExp])[] = [
      ["encrypt.state=erased", /erased is not one of active, inactive/],
      ["encrypt.state=active", /needs encrypt\.new-secret=FILE/],
      ["encrypt.keyslot=1", /needs encrypt\.state=active or inactive/],
      [`${active},encrypt.keyslot=8`, /8 is outside 0\.\.7/],
      [`${active},encrypt.old-secret=${secret}`, /is for encrypt\.state=inactive only/],
      [`${active},encrypt.iter-time=700000`, /above 600000/],
      [`encrypt.state=active,encrypt.new-secret=${secret}.none`, /ENOENT/],
      [inactive, /needs encrypt\.keyslot=N or encrypt\.old-secret=FILE/],
      [`${inactive},encrypt.new-secret=${wrong}`, /is for encrypt\.state=active only/],
      [`${inactive},encrypt.iter-time=1`, /is for encrypt\.state=active only/],
    ];
    for (const bytes of [Buffer.from("a\0b"), Buffer.from([0xff, 0xfe])]) {
      const bad = join(directory, "bad");
      fs.writeFileSync(bad, bytes);
      const options = `encrypt.state=active,encrypt.new-secret=${bad}`;
      const reason = /bad: the new passphrase is not valid UTF-8, or has a NUL/;
      expect(() => new AmendOptions([options]).amendment()).toThrow(reason);
    }
    for (const [options, reason] of refusals) {
      expect(() => new AmendOptions([options]).amendment(), options).toThrow(reason);
    }
  });

  it("refuses what qemu-img refuses, and leaves the image as it is", async () => {
    await make();
    const before = fs.readFileSync(path);
    const active = `encrypt.state=active,encrypt.new-secret=${newSecret}`;
    const inactive = "encrypt.state=inactive";
    const refusals: readonly (readonly [by: string, options: string, reason: RegExp])[] = [
      [secret, `${active},encrypt.keyslot=0`, /key slot 0 is active: erase it first/],
      [wrong, active, /disk\.qcow2: no key slot opens with this passphrase$/m],
      [secret, `${inactive},encrypt.keyslot=0`, /the only active key slot/],
      [secret, `${inactive},encrypt.old-secret=${secret}`, /the only active key slot/],
      [secret, `${inactive},encrypt.keyslot=3`, /key slot 3 is inactive already/],
      [secret, `${inactive},encrypt.old-secret=${wrong}`, /opens no key slot/],
      [secret, `${inactive},encrypt.keyslot=0,encrypt.old-secret=${wrong}`, /opens not key slot 0/],
      [wrong, `${inactive},encrypt.keyslot=0`, /no key slot opens with this passphrase/],
    ];
    for (const [by, options, reason] of refusals) {
      await expectRefusal(["amend", "--secret", by, "-o", options, path], [reason]);
    }
    await expectRefusal(["amend", "-o", active, path], [/its passphrase is needed, --secret FILE/]);
    expect(fs.readFileSync(path).equals(before)).toBe(true);
    const plain = join(directory, "plain.qcow2");
    await tsimgfs(["create", "-q", "-f", "qcow2", plain, "1M"]);
    await expectRefusal(["amend", "--secret", secret, "-o", active, plain], [/not encrypted/]);
  });
});
