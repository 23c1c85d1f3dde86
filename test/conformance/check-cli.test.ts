// The command `check` beside `qemu-img check`: exit codes, JSON fields, text, locks, and what it refuses.

import { appendFileSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { DamageImage } from "../support/damage-image.ts";
import { REPAIRABLE } from "../support/damage-kinds.ts";
import { withProgram } from "../support/foreground.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, attemptWithOutput, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const MiB = 2 ** 20;
/** Lock bytes of openers that read, and that write: see native-notes/locks.md. */
const READ_BYTE = 100;
const WRITE_BYTE = 101;

let directory: string;
let intact: string;

beforeAll(async () => {
  directory = await makeScratch("check-cli");
  intact = join(directory, "intact.qcow2");
  await createImage(intact, "qcow2", { size: 64 * MiB });
  await qemuIo(intact, "qcow2", ["write -P 1 0 1M", "write -P 2 5M 64k", "write -c -P 3 7M 64k"]);
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** A damaged copy of the intact image. */
function damaged(...kinds: readonly string[]): string {
  const image = new DamageImage(readFileSync(intact));
  for (const kind of kinds) REPAIRABLE[kind]?.(image, new Random(kind));
  const path = join(directory, "damaged.qcow2");
  writeFileSync(path, image.bytes);
  return path;
}

/** Waits until somebody holds a lock on a byte of an image. */
async function untilLocked(image: string, byte: number): Promise<void> {
  const { ino } = statSync(image);
  const line = new RegExp(`OFDLCK .*:${ino} (\\d+) (\\d+)$`, "gm");
  await until("QEMU holds the image", () => {
    const locks = readFileSync("/proc/locks", "latin1");
    return [...locks.matchAll(line)].some(
      ([, first, last]) => Number(first) <= byte && byte <= Number(last),
    );
  });
}

/** Images, and how a check of them ends. */
const CASES: readonly (readonly [what: string, kinds: readonly string[], status: number])[] = [
  ["an intact image", [], 0],
  ["leaks", ["leaked clusters behind the end"], 3],
  ["corruptions", ["COPIED wrong in an L2 table"], 2],
  ["both", ["a refcount of zero", "leaked clusters behind the end"], 2],
  ["a refcount block that cannot be read", ["a refcount block not aligned"], 1],
];

describe("check beside qemu-img check", () => {
  it.each(CASES)("%s: the same exit code, text and JSON", async (_what, kinds, status) => {
    const path = damaged(...kinds);
    for (const output of ["human", "json"]) {
      const args = ["check", "--output", output, path];
      const ours = await attemptTsimgfs(args);
      const theirs = await attempt("qemu-img", args);
      expect(ours.status, ours.stderr).toBe(status);
      expect(theirs.status).toBe(status);
      if (output === "json") expect(JSON.parse(ours.stdout)).toEqual(JSON.parse(theirs.stdout));
      else expect(ours.stdout).toBe(theirs.stdout);
    }
  });

  it("rounds shares as qemu-img does where they are halves of a hundredth", async () => {
    const path = join(directory, "shares.qcow2");
    await createImage(path, "qcow2", { size: 2 * MiB });
    // 1/32, 3/32 and 9/32: the even neighbour is below, above and below.
    for (const clusters of [1, 3, 9]) {
      await qemuIo(path, "qcow2", [`write 0 ${clusters * 64}k`]);
      const { stdout } = await run("qemu-img", ["check", path]);
      expect((await tsimgfs(["check", path])).stdout).toBe(stdout);
    }
  });

  it.each(["all", "leaks"])("says what -r %s has repaired, and checks again", async (mode) => {
    const kinds = ["leaked clusters behind the end"];
    const path = damaged(...kinds);
    const ours = await tsimgfs(["check", "-r", mode, path]);
    await run("qemu-img", ["check", path]);
    const theirs = await run("qemu-img", ["check", "-r", mode, damaged(...kinds)]);
    expect(ours.stdout).toBe(theirs.stdout);
    expect(ours.stdout).toMatch(/repaired:\n\n {4}\d+ leaked clusters\n {4}0 corruptions\n\n/);
  });

  it("has the fixed counts in the JSON", async () => {
    const kinds = ["a refcount of zero", "leaked clusters behind the end"];
    const args = ["check", "-r", "all", "--output", "json"];
    const path = damaged(...kinds);
    const ours = JSON.parse((await tsimgfs([...args, path])).stdout);
    const theirs = JSON.parse((await run("qemu-img", [...args, damaged(...kinds)])).stdout);
    expect({ ...ours, "image-end-offset": 0 }).toEqual({ ...theirs, "image-end-offset": 0 });
    expect(ours).toMatchObject({ "corruptions-fixed": 1 });
  });

  it("describes each finding in a line on standard error", async () => {
    const path = damaged("leaked clusters behind the end");
    const { stderr } = await attemptTsimgfs(["check", path]);
    expect(stderr).toMatch(
      /^(tsimgfs: [^\n]*damaged\.qcow2: cluster \d+: refcount 1, 0 references\n)+$/,
    );
    expect(await attemptTsimgfs(["check", "-q", path])).toMatchObject({
      status: 3,
      stdout: "",
      stderr: "",
    });
  });

  it("does not repair leaks where refcounts cannot be relied on", async () => {
    const path = damaged("a refcount of zero", "leaked clusters behind the end");
    const before = readFileSync(path);
    const result = await attemptTsimgfs(["check", "-q", "-r", "leaks", path]);
    expect(result.status).toBe(1);
    expect(result.stderr).toMatch(/^tsimgfs: .*damaged\.qcow2: its refcounts .* -r all only\n$/);
    expect(readFileSync(path).equals(before)).toBe(true);
    expect((await attempt("qemu-img", ["check", "-r", "leaks", path])).status).toBe(1);
  });

  it.each(CASES)("%s: ends so also where nobody reads what it found", async (_, kinds, status) => {
    expect((await attemptWithOutput("gone", ["check", damaged(...kinds)])).status).toBe(status);
    const json = ["check", "--output", "json", damaged(...kinds)];
    expect((await attemptWithOutput("gone", json)).status).toBe(status);
  });

  it("tells in one line where its output, or that of any command, cannot be written", async () => {
    for (const args of [
      ["check", intact],
      ["info", intact],
      ["map", intact],
      ["--help"],
      ["help"],
    ]) {
      const { status, stderr } = await attemptWithOutput("full", args);
      expect({ args, status, stderr }).toEqual({
        args,
        status: 1,
        stderr: "tsimgfs: standard output: no space left\n",
      });
    }
  });

  it("ends with 63 where there is no check", async () => {
    const raw = join(directory, "disk.raw");
    await createImage(raw, "raw", { size: MiB });
    const result = await attemptTsimgfs(["check", raw]);
    expect(result).toMatchObject({ status: 63, stdout: "" });
    expect(result.stderr).toMatch(/^tsimgfs: .*disk\.raw: raw images have nothing to check\n$/);
    expect((await attempt("qemu-img", ["check", "-f", "raw", raw])).status).toBe(63);
  });

  it("checks and repairs QED images, with the JSON of qemu-img", async () => {
    const qed = join(directory, "disk.qed");
    await createImage(qed, "qed", { size: 8 * MiB });
    await qemuIo(qed, "qed", ["write 0 1M", "write 5M 64k", "write 3M 64k"]);
    appendFileSync(qed, Buffer.alloc(3 * 65536));
    const oracle = await attempt("qemu-img", ["check", "--output", "json", qed]);
    const ours = await attemptTsimgfs(["check", "--output", "json", qed]);
    expect(ours.status).toBe(3);
    expect(ours.status).toBe(oracle.status);
    expect(JSON.parse(ours.stdout)).toEqual(JSON.parse(oracle.stdout));
    const repair = await attemptTsimgfs(["check", "-r", "leaks", qed]);
    expect(repair.status).toBe(0);
    expect(repair.stdout).toContain("    3 leaked clusters\n    0 corruptions\n");
    const after = await run("qemu-img", ["check", qed]);
    expect((await tsimgfs(["check", qed])).stdout).toBe(after.stdout);
  });

  it("refuses what is no image, in one line", async () => {
    await expectRefusal(["check", join(directory, "none.qcow2")], [/none\.qcow2: no such file/]);
    await expectRefusal(["check", "-f", "vdi", intact], [/vdi is not one of/]);
    await expectRefusal(["check", "-r", "some", intact], [/some is not one of leaks, all/]);
    await expectRefusal(["check", "-U", "-r", "all", intact], [/--force-share/]);
    const broken = damaged();
    writeFileSync(broken, readFileSync(intact).subarray(0, 50));
    await expectRefusal(["check", broken], [/damaged\.qcow2: /]);
  });

  it("keeps out of the way of writers, and other readers out of a repair", async () => {
    await withProgram("qemu-io", ["-f", "qcow2", intact], async () => {
      await untilLocked(intact, WRITE_BYTE);
      await expectRefusal(["check", intact], [/intact\.qcow2: is in use by qemu-io/]);
      await expectRefusal(["check", "-r", "all", intact], [/is in use by qemu-io/]);
      expect((await attemptTsimgfs(["check", "-U", intact])).status).toBe(0);
    });
    await withProgram("qemu-io", ["-r", "-f", "qcow2", intact], async () => {
      await untilLocked(intact, READ_BYTE);
      expect((await attemptTsimgfs(["check", intact])).status).toBe(0);
      await expectRefusal(["check", "-r", "all", intact], [/is in use by qemu-io/]);
    });
  });

  it("explains itself", async () => {
    const { stdout } = await tsimgfs(["check", "--help"]);
    expect(stdout).toContain("tsimgfs check -r leaks vm.qcow2");
    expect(stdout).toContain("63");
  });
});
