// What somebody who has mistyped is told, by every command: one line that names what it is about, and where to read on.

import { chmod, mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { withProgram } from "../support/foreground.ts";
import { ORDINARY_USER, ordinaryUserObstacle } from "../support/ordinary-user.ts";
import { createImage } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, type RunOptions, type RunResult, until } from "../support/run.ts";
import { LONG } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;
/** Commands that each case of the quick form tries. */
const QUICK = 3;

interface Command {
  /** The words for a use of `image`; `out` is a new file, `directory` one to mount on. */
  readonly use: (image: string) => readonly string[];
  /** It writes to the image. */
  readonly writes?: true;
  /** Any number of words are arguments. */
  readonly takesMany?: true;
}

const COMMANDS: Readonly<Record<string, Command>> = {
  amend: { use: (image) => ["-o", "compat=1.1", image], writes: true },
  bench: { use: (image) => ["-c", "1", image] },
  bitmap: { use: (image) => ["--add", image, "name"], writes: true },
  check: { use: (image) => [image] },
  commit: { use: (image) => [image], writes: true },
  compare: { use: (image) => [image, "vm.qcow2"] },
  convert: { use: (image) => [image, "out.raw"], takesMany: true },
  dd: { use: (image) => [`if=${image}`, "of=out.raw"], takesMany: true },
  info: { use: (image) => [image] },
  io: { use: (image) => ["-r", "-c", "map", image] },
  map: { use: (image) => [image] },
  measure: { use: (image) => [image] },
  mount: { use: (image) => ["-r", image, "mnt"], takesMany: true },
  rebase: { use: (image) => ["-b", "", image], writes: true },
  resize: { use: (image) => [image, "+1M"], writes: true },
  snapshot: { use: (image) => ["-l", image] },
  stats: { use: (image) => [image] },
  stream: { use: (image) => [image], writes: true },
};
const NAMES = Object.keys(COMMANDS);
/** Those that take no image, or need root for it. */
const OTHERS = ["attach", "create", "detach", "list", "top", "umount"];

const random = new Random("messages");

/** All commands, or some. */
function some(names: readonly string[]): readonly string[] {
  if (LONG) return names;
  const left = [...names];
  return Array.from({ length: Math.min(QUICK, left.length) }, () => {
    const [name = ""] = left.splice(random.below(left.length), 1);
    return name;
  });
}

let directory = "";

beforeAll(async () => {
  directory = await makeScratch("messages");
  await createImage(join(directory, "vm.qcow2"), "qcow2", { size: 4 * MIB });
  await mkdir(join(directory, "mnt"));
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

/** The one line of a command that fails, `compare` with its own status; nothing is made. */
async function messageOf(
  name: string,
  words: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const before = await readdir(directory);
  const result = await attemptTsimgfs([name, ...words], { cwd: directory, ...options });
  expect(await readdir(directory)).toEqual(before);
  const isOfCompare = name === "compare" && result.status === 2;
  return refusalOf(isOfCompare ? { ...result, status: 1 } : result);
}

const use = (name: string, image: string): readonly string[] => COMMANDS[name]?.use(image) ?? [];

describe("a command line that is wrong", () => {
  it.each(some([...NAMES, "attach", "create", "detach", "umount"]))(
    "%s without arguments",
    async (name) => {
      const line = await messageOf(name, []);
      expect(line).toMatch(/^tsimgfs: (missing required argument '[a-z-]+'|\S+: needs \S.*); see /);
      expect(line.endsWith(`; see tsimgfs ${name} --help`)).toBe(true);
    },
  );

  it.each(some(NAMES.filter((name) => COMMANDS[name]?.takesMany !== true)))(
    "%s with too many",
    async (name) => {
      const words = [...use(name, "vm.qcow2"), "one", "two"];
      expect(await messageOf(name, words)).toMatch(
        new RegExp(
          `^tsimgfs: too many arguments for '${name}': it takes \\d, and these are \\d; see tsimgfs ${name} --help$`,
        ),
      );
    },
  );

  it.each(some([...NAMES, ...OTHERS]))(
    "%s with an option that has a slip of the pen",
    async (name) => {
      expect(await messageOf(name, ["--quite", ...use(name, "vm.qcow2")])).toBe(
        `tsimgfs: unknown option '--quite' (Did you mean --quiet?); see tsimgfs ${name} --help`,
      );
    },
  );

  it.each(some(["check", "info", "map", "bench", "convert", "stats"]))(
    "%s with a format that there is not",
    async (name) => {
      expect(await messageOf(name, ["-f", "qcow3", ...use(name, "vm.qcow2")])).toMatch(
        /^tsimgfs: .*qcow3.*(raw|qcow2)/,
      );
    },
  );
});

describe("an image that is none", () => {
  it.each(some(NAMES))("%s of a directory", async (name) => {
    expect(await messageOf(name, use(name, "mnt"))).toBe("tsimgfs: mnt: is a directory");
  });

  it.each(some(NAMES))("%s of nothing", async (name) => {
    expect(await messageOf(name, use(name, "gone.qcow2"))).toBe(
      "tsimgfs: gone.qcow2: no such file",
    );
  });

  it.each(some(NAMES))("%s of an empty file", async (name) => {
    await writeFile(join(directory, "empty"), "");
    expect(await messageOf(name, use(name, "empty"))).toBe(
      "tsimgfs: empty: is empty, and not named .raw or .img; state the format with --format",
    );
  });

  it.each(some(NAMES))("%s of a file that is in no directory", async (name) => {
    expect(await messageOf(name, use(name, "vm.qcow2/x"))).toBe(
      "tsimgfs: vm.qcow2/x: a part of the path is not a directory",
    );
  });

  it.skipIf(ordinaryUserObstacle() !== undefined).each(some(NAMES))(
    "%s of a file that is closed to you",
    async (name) => {
      const file = join(directory, "closed.qcow2");
      await createImage(file, "qcow2", { size: MIB });
      await chmod(file, 0o600);
      const message = await messageOf(name, use(name, "closed.qcow2"), { identity: ORDINARY_USER });
      expect(message).toBe(
        "tsimgfs: closed.qcow2: permission denied: it belongs to root, mode 0600",
      );
    },
  );

  it("create where no file can be made", async () => {
    expect(await messageOf("create", ["-q", "nowhere/new.raw", "1M"])).toBe(
      "tsimgfs: nowhere/new.raw: there is no such directory",
    );
    expect(await messageOf("create", ["-q", "mnt", "1M"])).toBe("tsimgfs: mnt: is a directory");
  });
});

describe("names of files", () => {
  /** Runs it with `\377`, which is no UTF-8, behind the last word. */
  const attemptBroken = (words: readonly string[], cwd: string): Promise<RunResult> =>
    attempt("sh", ["-c", 'exec "$@$(printf "\\\\377")"', "sh", process.execPath, MAIN, ...words], {
      cwd,
    });

  it.each([
    ["info"],
    ["create", "-f", "qcow2", "-u", "-F", "raw", "new.qcow2", "1M", "-b"],
    ["create"],
  ])(
    "that are not UTF-8 are refused, and no file of another name is made: %s",
    async (...words) => {
      const before = await readdir(directory);
      const result = await attemptBroken([...words, "vm"], directory);
      expect(refusalOf(result)).toBe(
        "tsimgfs: vm\ufffd: is not valid UTF-8, and names that are not cannot be used",
      );
      expect(await readdir(directory)).toEqual(before);
    },
  );

  it.each([
    ["with spaces", "my disk"],
    ["with a line break", "my\ndisk"],
    ["beyond ASCII", "plätte \u{1f4bf} \ufffd"],
    ["that look like an option", "-disk"],
    ["with what QEMU has for protocols", "nbd:disk"],
  ])("%s are as good as any", async (_, name) => {
    const cwd = join(directory, `names-${random.u32()}`);
    await mkdir(cwd);
    const file = `./${name}.qcow2`;
    await tsimgfs(["create", "-q", "-f", "qcow2", file, "1M"], { cwd });
    await tsimgfs(["convert", "-O", "qcow2", file, `${file}.copy`], { cwd });
    expect(await readdir(cwd)).toEqual([`${name}.qcow2`, `${name}.qcow2.copy`]);
    const { stdout } = await tsimgfs(["info", "--output", "json", file], { cwd });
    expect(JSON.parse(stdout)).toMatchObject({ filename: file });
    // Messages stay on their line.
    const line = refusalOf(await attemptTsimgfs(["resize", file, "1k"], { cwd }));
    expect(line).toContain(`${file.replace("\n", "\\x0a")}: shrinking it deletes`);
  });
});

/** The byte of an image that QEMU locks where others must not write to it. */
const WRITE_UNSHARED = 201;

describe("an image that QEMU uses", () => {
  const disk = (): string => join(directory, "vm.qcow2");
  const nodes = (): readonly string[] => [
    ...["--blockdev", `driver=file,node-name=file,filename=${disk()}`],
    ...["--blockdev", "driver=qcow2,node-name=disk,file=file"],
    ...["--nbd-server", `addr.type=unix,addr.path=${join(directory, "socket")}`],
    ...["--export", "type=nbd,id=export,node-name=disk,writable=on"],
  ];

  it.each([
    ["qemu-io", () => [disk()]],
    ["qemu-storage-daemon", nodes],
  ])("%s is named, with its process, and what to do", async (program, args) => {
    await withProgram(program, args(), async ({ pid }) => {
      // Who opens the image to find out could get in its way.
      const isHeld = async (): Promise<boolean> => {
        const { stdout } = await attempt("sh", ["-c", `cat /proc/${pid}/fdinfo/*`]);
        const ranges = [...stdout.matchAll(/^lock:.* (\d+) (\d+)$/gm)];
        return ranges.some(
          ([, first, last]) => Number(first) <= WRITE_UNSHARED && WRITE_UNSHARED <= Number(last),
        );
      };
      await until("it has the image", isHeld);
      const holder = `tsimgfs: vm.qcow2: is in use by ${program} (pid ${pid})`;
      for (const name of some(NAMES)) {
        const advice =
          COMMANDS[name]?.writes === true
            ? ", and cannot be written to meanwhile; stop that first"
            : ", which may write to it; stop that first, or read what may change with --force-share";
        expect(await messageOf(name, use(name, "vm.qcow2"))).toBe(holder + advice);
      }
      await rm(join(directory, "socket"), { force: true });
    });
    await rm(join(directory, "socket"), { force: true });
  });
});
