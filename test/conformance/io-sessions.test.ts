// How `tsimgfs io` begins and ends: lines from a pipe and from a terminal, what stops it, locks, options.

import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { qemuCheck } from "../support/check-oracle.ts";
import { withProgram } from "../support/foreground.ts";
import { expectSameDisk, ioBesideQemu, kindsOf } from "../support/io-beside-qemu.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, until } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;
const QCOW2 = { format: "qcow2" } as const;

let directory: string;
let image: string;

beforeAll(async () => {
  directory = await makeScratch("io-sessions");
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** A new image of 10 MiB with some data. */
async function newImage(name: string): Promise<string> {
  const path = join(directory, `${name}.qcow2`);
  rmSync(path, { force: true });
  await createImage(path, "qcow2", { size: 10 * MIB });
  await qemuIo(path, "qcow2", ["write -P 1 0 100k"]);
  return path;
}

async function expectClean(path: string): Promise<void> {
  const { counts, stderr } = await qemuCheck(path);
  expect(counts, stderr).toMatchObject({ status: 0, leaks: 0, corruptions: 0 });
}

describe("lines from a pipe beside qemu-io", () => {
  beforeAll(async () => {
    image = await newImage("pipe");
  });

  it.each([
    ["length\nread 0 1k\nquit\nlength\n", 0],
    ["length\nfoo\n", 1],
    ["length", 0],
    ["foo\nlength\n\n   \n", 1],
    ["", 0],
    ["sleep 20\nwrite -P 3 0 64k\nread -v 0 16\nread -P 4 0 1\nflush\nmap\n", 1],
    ["read x\n\n q", 1],
    [`${"alloc 0\n".repeat(30)}info\n`, 0],
  ])("are done, each after a prompt: %j", async (input, status) => {
    const pair = await ioBesideQemu(image, { ...QCOW2, input });
    expect(pair.result.status).toBe(status);
    await expectSameDisk("qcow2", pair);
  });

  it("are not read where commands are stated", async () => {
    const { result } = await ioBesideQemu(image, { ...QCOW2, input: "foo\n" }, ["length"]);
    expect(result.stdout).toBe("10 MiB\n");
  });
});

describe("commands on the command line beside qemu-io", () => {
  it("end with quit", async () => {
    const { result } = await ioBesideQemu(image, QCOW2, ["length", "q 1 2", "foo", "length"]);
    expect(result).toMatchObject({ status: 0, stdout: "10 MiB\n" });
  });

  it("fail, and those after them are done", async () => {
    const { result } = await ioBesideQemu(image, QCOW2, ["read -P 9 0 1k", "length"]);
    expect(result.status).toBe(1);
    expect(result.stdout).toMatch(
      /^Pattern verification failed at offset 0, 1024 bytes\n.*\n.*\n10 MiB\n$/,
    );
  });

  it("on a read-only disk refuse to change it", async () => {
    const commands = [
      ...["write 0 512", "write 0 x", "write 0", "write -z 0 64k", "write -c 1M 64k", "w -x 0 1"],
      ...["discard 0 64k", "truncate 5M", "flush", "read -q -P 1 0 100k", "map", "alloc 0 1M"],
    ];
    const { result } = await ioBesideQemu(image, { ...QCOW2, flags: ["-r"] }, commands);
    const refusal = /^tsimgfs: .*pipe\.qcow2\.ours: Block node is read-only$/gm;
    expect(result.stderr.match(refusal)).toHaveLength(7);
  });

  it("help with all commands, and with each", async () => {
    const { stdout } = await tsimgfs(["io", "-c", "help", image]);
    const theirs = (await attempt("qemu-io", ["-c", "help", "-f", "qcow2", image])).stdout;
    for (const line of stdout.split("\n")) expect(theirs.split("\n")).toContain(line);
    const names = [...stdout.matchAll(/^(\w+) .*-- /gm)].map(([, name]) => name ?? "");
    expect(names).toHaveLength(12);
    const commands = names.flatMap((name) => ["-c", `help ${name}`]);
    const each = (await tsimgfs(["io", ...commands, image])).stdout.split("\n");
    for (const line of stdout.split("\n").slice(0, names.length)) expect(each).toContain(line);
  });
});

describe("a terminal", () => {
  it("edits lines, completes names, and calls lines back", async () => {
    const command = `${process.execPath} ${MAIN} io ${image}`;
    const env = { TERM: "xterm" };
    await withProgram(
      "script",
      ["-qfec", command, "/dev/null"],
      async (program) => {
        const count = (text: string): number => program.output.split(text).length - 1;
        await until("there is a prompt", () => count("tsimgfs io> ") > 0);
        program.write("len\t");
        await until("length was completed", () => count("length ") === 1);
        program.write("\r");
        await until("it was done", () => count("10 MiB") === 1);
        program.write("\u001b[A\r");
        await until("it was called back", () => count("10 MiB") === 2);
        program.write("alloc 9\u007f0\r");
        await until("a letter was taken back", () => count("at offset 0 bytes") === 1);
        program.write("q\r");
        expect(await program.end()).toBe(0);
      },
      env,
    );
  });

  it("ends in order with Ctrl-D and with Ctrl-C", async () => {
    for (const [key, status] of [
      ["\u0004", 0],
      ["\u0003", 130],
    ] as const) {
      const path = await newImage("terminal");
      const command = `${process.execPath} ${MAIN} io ${path}`;
      await withProgram("script", ["-qfec", command, "/dev/null"], async (program) => {
        await until("there is a prompt", () => program.output.includes("tsimgfs io> "));
        program.write("write -P 5 1M 1M\r");
        await until("it was written", () => program.output.includes("wrote 1048576"));
        program.write(key);
        expect(await program.end()).toBe(status);
      });
      await expectClean(path);
      await qemuIo(path, "qcow2", ["read -P 5 1M 1M"]);
    }
  });
});

describe("an end before its time", () => {
  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
    ["SIGQUIT", 131],
  ] as const)("by %s closes the disk in order", async (signal, status) => {
    const path = await newImage("signal");
    const commands = ["-c", "write -P 7 2M 1M", "-c", "sleep 100000", "-c", "write 0 1k"];
    const args = [MAIN, "io", ...commands, path];
    await withProgram(process.execPath, args, async (program) => {
      await until("it was written", () => program.output.includes("wrote 1048576"));
      program.kill(signal);
      expect(await program.end()).toBe(status);
    });
    await expectClean(path);
    await qemuIo(path, "qcow2", ["read -P 7 2M 1M", "read -P 1 0 100k"]);
  });

  it("by a kill leaves leaks at the most, which the next one clears away", async () => {
    const path = await newImage("kill");
    const args = [MAIN, "io", "-c", "write -P 7 2M 1M", "-c", "sleep 100000", path];
    await withProgram(process.execPath, args, async (program) => {
      await until("it was written", () => program.output.includes("wrote 1048576"));
      program.kill("SIGKILL");
      await program.end();
    });
    const { counts } = await qemuCheck(path);
    expect(counts).toMatchObject({ corruptions: 0, checkErrors: 0 });
    await tsimgfs(["io", "-c", "read -P 7 2M 1M", path]);
    await expectClean(path);
  });

  it("of who reads its output closes the disk in order", async () => {
    const path = await newImage("pipe end");
    const command = `'${process.execPath}' '${MAIN}' io -c 'write 1M 1M' -c 'read -v 0 5M' '${path}' | head -1`;
    const { stdout } = await attempt("sh", ["-c", command]);
    expect(stdout).toBe("wrote 1048576/1048576 bytes at offset 1048576\n");
    await expectClean(path);
  });
});

describe("the disk while it is open", () => {
  it("is kept from other writers, and from nobody afterwards", async () => {
    const path = await newImage("locked");
    const args = [MAIN, "io", path];
    await withProgram(process.execPath, args, async (program) => {
      await until("there is a prompt", () => program.output.includes("tsimgfs io> "));
      const other = await attempt("qemu-io", ["-f", "qcow2", "-c", "length", path]);
      expect(other.status).toBe(1);
      expect(other.stderr).toMatch(/Failed to get .* lock/);
      program.write("quit\n");
      expect(await program.end()).toBe(0);
    });
    await qemuIo(path, "qcow2", ["write 0 512"]);
  });

  it("stores what is read from a backing file with -C, as qemu-io does", async () => {
    const base = await newImage("base");
    const overlay = join(directory, "overlay.qcow2");
    await createImage(overlay, "qcow2", { backing: { file: base, format: "qcow2" } });
    const options = { ...QCOW2, flags: ["-C"] };
    const pair = await ioBesideQemu(overlay, options, [
      ...["read -P 1 0 1k", "write -P 2 1M 512", "read -P 0 1049088 512"],
    ]);
    await expectSameDisk("qcow2", pair);
    expect(await kindsOf(pair.ours, "qcow2")).toEqual(await kindsOf(pair.theirs, "qcow2"));
    expect((await kindsOf(pair.ours, "qcow2"))[0]).toBe("65536 image 0: data");
  });
});

describe("zeros that are written", () => {
  it.each([
    ["off", "65536 image 0: data"],
    ["on", "65536 image 0: no data, zeros"],
    ["unmap", "65536 image 0: no data, zeros"],
  ])("with --detect-zeroes %s are %s", async (mode, kind) => {
    const path = await newImage("detect");
    await tsimgfs(["io", "--detect-zeroes", mode, "-c", "write -P 0 0 64k", path]);
    expect((await kindsOf(path, "qcow2"))[0]).toBe(
      kind === "65536 image 0: data" ? "131072 image 0: data" : kind,
    );
  });
});

describe("what io refuses", () => {
  it("is told in one line", async () => {
    await expectRefusal(["io"], [/missing required argument 'image'/]);
    await expectRefusal(["io", "-c", "length", join(directory, "none")], [/none: no such file$/]);
    await expectRefusal(["io", image, image], [/too many arguments/]);
    await expectRefusal(["io", "-z", image], [/unknown option '-z'/]);
    await expectRefusal(["io", "-f", "vdi", image], [/vdi is not one of/]);
    await expectRefusal(["io", "-d", "foo", image], [/--discard: foo is not one of unmap, ignore/]);
    await expectRefusal(["io", "-U", "-c", "length", image], [/--force-share: .*add -r/]);
    await expectRefusal(
      ["io", "-d", "off", "--detect-zeroes", "unmap", image],
      [/contradicts --discard ignore/],
    );
  });

  it("is not what -U -r reads beside a writer", async () => {
    await withProgram("qemu-io", ["-f", "qcow2", image], async (program) => {
      await until("QEMU has the image", () => program.output.includes("qemu-io> "));
      const refused = await attemptTsimgfs(["io", "-r", "-c", "length", image]);
      expect(refused.status).toBe(1);
      const { stdout } = await tsimgfs(["io", "-U", "-r", "-c", "length", image]);
      expect(stdout).toBe("10 MiB\n");
    });
  });

  it("does not let a guessed raw disk become an image, as qemu-io does not", async () => {
    const raw = join(directory, "guessed.raw");
    await createImage(raw, "raw", { size: MIB });
    const magic = join(directory, "magic");
    await createImage(magic, "qcow2", { size: MIB });
    const args = ["-c", `write -s ${magic} 0 512`, "-c", "write -P 1 512 512", raw];
    const ours = await attemptTsimgfs(["io", ...args]);
    const theirs = await attempt("qemu-io", args);
    expect(ours.status).toBe(1);
    expect(theirs.status).toBe(1);
    const firstLine = "write failed: Operation not permitted";
    expect(ours.stdout.split("\n")[0]).toBe(firstLine);
    expect(theirs.stdout.split("\n")[0]).toBe(firstLine);
    expect(ours.stderr).toMatch(/^tsimgfs: .*guessed\.raw: a write would make it look like a qcow/);
  });
});
