// SIGKILL in the middle of what amend writes of key slots, and a host that becomes full: a passphrase that opens the image is left,
// and key material of slots that stay is never lost.

import { copyFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  createEncryptedImage,
  encryptedArguments,
  PASSPHRASE,
} from "../support/encrypted-image.ts";
import { killAtChange } from "../support/kill-at-write.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";
import { withRoom } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;
const KILLS = byScale(1, 20);
/** Bytes that are left on the host; key material of a slot takes 256000 bytes. */
const ROOMS = byScale([131072], [0, 4096, 65536, 131072, 262144]);
/** Of a file, as far as the test hears of them, before the kill. */
const CHANGES_MAX = 12;
const NEW = "another passphrase";
const BOTH = [PASSPHRASE, NEW] as const;

describe("key slots of a command that is killed, or finds no space", () => {
  let directory = "";
  const random = new Random("killed-key-slots");
  const path = (name: string): string => join(directory, name);

  beforeAll(async () => {
    directory = await makeScratch("killed-key-slots");
    await writeFile(path("old"), PASSPHRASE);
    await writeFile(path("new"), NEW);
    const luks = ["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.key-secret=key"];
    await createEncryptedImage(path("one.qcow2"), luks, String(4 * MIB));
    await run("qemu-io", ["-c", "write -P 7 0 4M", ...encryptedArguments(path("one.qcow2"))]);
    await copyFile(path("one.qcow2"), path("two.qcow2"));
    await tsimgfs(added(path("two.qcow2")));
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** The passphrases that open the image; it is in order, and its disk is what it was. */
  async function opening(image: string): Promise<string[]> {
    const found: string[] = [];
    for (const passphrase of BOTH) {
      const source = encryptedArguments(image, passphrase);
      const { status } = await attempt("qemu-io", ["-r", "-c", "read -P 7 0 4M", ...source]);
      if (status === 0) found.push(passphrase);
    }
    const [passphrase = "none"] = found;
    await run("qemu-img", ["check", "-q", ...encryptedArguments(image, passphrase)]);
    return found;
  }

  function amendKeys(image: string, ...options: readonly string[]): string[] {
    const secrets = ["--secret", path("old"), "-o"];
    return ["amend", ...secrets, options.map((option) => `encrypt.${option}`).join(","), image];
  }
  function added(image: string): string[] {
    return amendKeys(image, "state=active", `new-secret=${path("new")}`, "iter-time=0");
  }
  function removed(image: string): string[] {
    return amendKeys(image, "state=inactive", `old-secret=${path("old")}`);
  }
  const killed = (args: readonly string[], image: string): Promise<void> =>
    killAtChange(args, image, random.between(1, CHANGES_MAX));

  it("a kill leaves a passphrase that opens the image", async () => {
    const copy = path("copy.qcow2");
    for (let kill = 0; kill < KILLS; kill++) {
      await copyFile(path("one.qcow2"), copy);
      await killed(added(copy), copy);
      const found = await opening(copy);
      expect(found).toContain(PASSPHRASE);
      if (!found.includes(NEW)) await tsimgfs(added(copy));
      await killed(removed(copy), copy);
      expect(await opening(copy)).toContain(NEW);
    }
  });

  describe.skipIf(!IS_ROOT)("on a full host (needs root)", () => {
    it.each(ROOMS)("one is added or not, with room for %i bytes", async (room) => {
      await withRoom(path("one.qcow2"), room, async (copy, makeRoom) => {
        const result = await attemptTsimgfs(added(copy));
        if (result.status !== 0) expect(refusalOf(result)).toMatch(/: \S+: [^\n]*ENOSPC/);
        expect(await opening(copy)).toEqual(result.status === 0 ? BOTH : [PASSPHRASE]);
        await makeRoom();
        if (result.status !== 0) await tsimgfs(added(copy));
        expect(await opening(copy)).toEqual(BOTH);
      });
    });

    it.each(ROOMS)("one is removed or not, with room for %i bytes", async (room) => {
      await withRoom(path("two.qcow2"), room, async (copy, makeRoom) => {
        const result = await attemptTsimgfs(removed(copy));
        if (result.status !== 0) expect(refusalOf(result)).toMatch(/: \S+: [^\n]*ENOSPC/);
        const found = await opening(copy);
        if (result.status === 0) expect(found).toEqual([NEW]);
        else expect(found).toContain(NEW);
        await makeRoom();
        if (found.includes(PASSPHRASE)) await tsimgfs(removed(copy));
        expect(await opening(copy)).toEqual([NEW]);
      });
    });
  });
});
