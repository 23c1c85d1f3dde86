// Names of backing and data files that reach for the network, for devices, or for the terminal.

import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { describeHostile, type HostileCase } from "../support/hostile-case.ts";
import { checkedTsimgfs } from "../support/hostile-cli.ts";
import { qedSample } from "../support/hostile-samples.ts";
import { buildQcow2, type Qcow2Options } from "../support/qcow2-builder.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { withScratch } from "../support/scratch.ts";

const SIZE = 65536;
const bytes = new Random("names", 1).bytes(SIZE);

/** The ways in which an image names another file. */
const ROLES = ["qcow2 backing file", "QED backing file", "data file"] as const;
type Role = (typeof ROLES)[number];

/** An image in `directory` that names `name`. */
function naming(
  directory: string,
  role: Role,
  name: string | Uint8Array,
  more: Qcow2Options = {},
): string {
  switch (role) {
    case "qcow2 backing file":
      return buildQcow2({
        clusterBits: 12,
        virtualSize: SIZE,
        backingFile: name,
        backingFormat: "raw",
        ...more,
      }).write(join(directory, "image.qcow2"));
    case "QED backing file":
      return qedSample({ backingFile: name, backingFormat: "raw" }).write(
        join(directory, "image.qed"),
      );
    case "data file":
      return buildQcow2({
        clusterBits: 12,
        virtualSize: SIZE,
        dataFile: name,
        clusters: { 0: { kind: "data", bytes } },
        ...more,
      }).write(join(directory, "image.qcow2"));
  }
}

function named(
  role: Role,
  name: string | Uint8Array,
  more: Partial<HostileCase> = {},
): HostileCase {
  const label = JSON.stringify(Buffer.from(name).toString("latin1").slice(0, 60));
  return {
    name: `${role} named ${label}`,
    format: role === "QED backing file" ? "qed" : "qcow2",
    write: (directory) => naming(directory, role, name),
    oracle: "none",
    ...more,
  };
}

const REFUSED: Partial<HostileCase> = { expected: "refused", infoStatus: 0 };

const PROTOCOL_NAMES = [
  'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
  'json:{"driver":"nbd","host":"127.0.0.1","port":"9"}',
  "json:",
  "nbd://127.0.0.1:9/x",
  "nbd:unix:/nowhere.sock",
  "file:/etc/passwd",
  "file:///etc/passwd",
  "fd:0",
  "fd:/dev/fdset/1",
  "http://127.0.0.1:9/x",
  "https://127.0.0.1:9/x",
  "ftp://127.0.0.1/x",
  "ssh://root@127.0.0.1/etc/passwd",
  "host_device:/dev/sda",
  "blkdebug::/etc/passwd",
  "fat:rw:/tmp",
  "vvfat:/tmp",
  "null-co://",
  "raw:/etc/passwd",
  "x:",
  ":",
  "a:b",
  "a:b/c",
  "JSON:{}",
];

describeHostile(
  "names with a protocol are refused by name",
  ROLES.flatMap((role) =>
    PROTOCOL_NAMES.map((name) =>
      named(role, name, {
        expected: "refused",
        reason: new RegExp(escapeRegExp(name.slice(0, 8))),
      }),
    ),
  ),
);

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

describeHostile(
  "one name with a protocol through the command, in each role",
  ROLES.map((role) =>
    named(role, "nbd://127.0.0.1:9/x", { ...REFUSED, reason: /nbd/, command: "always" }),
  ),
);

const UNPRINTABLE_NAMES: (string | Uint8Array)[] = [
  "missing\ntsimgfs: /etc/passwd: all is well",
  "missing\r\u001b[2K\u001b[1Aall is well",
  "\u001b]0;title\u0007",
  "\u009b31m",
  "\u202egpj.exe",
  "\u2028next line",
  "a\tb\u0008\u007f",
  Buffer.from([0x6d, 0xff, 0xfe, 0x80, 0x0a, 0x9b]),
  "%s%n%x",
  "x".repeat(1023),
  `${"d/".repeat(511)}x`,
];

describeHostile(
  "names that a terminal or a log must not see raw",
  ROLES.flatMap((role) =>
    UNPRINTABLE_NAMES.map((name) =>
      named(role, name, {
        ...REFUSED,
        command: role === "qcow2 backing file" ? "always" : "sample",
      }),
    ),
  ),
);

describeHostile(
  "names that are no regular file",
  ROLES.flatMap((role) => [
    ...[
      "/dev/zero",
      "/dev/null",
      "/dev/tty",
      "/dev/stdin",
      "/proc/self/mem",
      "/",
      ".",
      "..",
      "/proc/self/fd/0",
      "/nowhere/at/all",
    ].map((name) => named(role, name, { expected: "refused" })),
    named(role, "directory", {
      expected: "refused",
      infoStatus: 0,
      write: (directory) => {
        mkdirSync(join(directory, "directory"));
        return naming(directory, role, "directory");
      },
    }),
  ]),
);

/** Like `named`, with a file of 64 KiB at `file` (relative to the directory of the image). */
function withFile(
  role: Role,
  label: string,
  name: string | Uint8Array,
  file: string,
  more: Partial<HostileCase>,
): HostileCase {
  return {
    ...named(role, name),
    name: `${role}: ${label}`,
    write: (directory) => {
      const inner = join(directory, "inner");
      mkdirSync(inner);
      mkdirSync(join(directory, "inner", "sub"));
      writeFileSync(join(inner, file), bytes);
      return naming(inner, role, name);
    },
    ...more,
  };
}

const OPEN: Partial<HostileCase> = { expected: "open", oracle: "qemu-img" };

describeHostile("plain names and the policy for them", [
  ...ROLES.flatMap((role) => [
    withFile(role, "beside the image", "base", "base", OPEN),
    withFile(role, "in a directory below", "sub/base", "sub/base", OPEN),
    withFile(role, "in the directory above", "../base", "../base", OPEN),
    withFile(role, "with a colon after a slash", "./a:b", "a:b", OPEN),
    withFile(role, "with a comma and spaces", "a, b,,c", "a, b,,c", OPEN),
    withFile(role, "that is not ASCII", "\u00e4\u{1f600}", "\u00e4\u{1f600}", OPEN),
    withFile(role, "policy none", "base", "base", {
      ...REFUSED,
      engine: { backingPolicy: "none" },
    }),
    withFile(role, "policy same-directory, beside", "base", "base", {
      expected: "open",
      engine: { backingPolicy: "same-directory" },
    }),
    withFile(role, "policy same-directory, above", "../base", "../base", {
      ...REFUSED,
      engine: { backingPolicy: "same-directory" },
    }),
    withFile(role, "policy same-directory, below", "sub/base", "sub/base", {
      ...REFUSED,
      engine: { backingPolicy: "same-directory" },
    }),
    withFile(role, "policy same-directory, absolute", "/etc/hostname", "base", {
      ...REFUSED,
      engine: { backingPolicy: "same-directory" },
    }),
  ]),
  ...ROLES.map(
    (role): HostileCase => ({
      ...named(role, "link"),
      name: `${role}: policy same-directory, a symbolic link to elsewhere`,
      write: (directory) => {
        const inner = join(directory, "inner");
        mkdirSync(inner);
        writeFileSync(join(directory, "base"), bytes);
        symlinkSync("../base", join(inner, "link"));
        return naming(inner, role, "link");
      },
      ...REFUSED,
      engine: { backingPolicy: "same-directory" },
    }),
  ),
  withFile("qcow2 backing file", "embedded NUL", "base\0.evil", "base", OPEN),
  withFile("QED backing file", "embedded NUL", "base\0.evil", "base", { expected: "open" }),
  withFile("qcow2 backing file", "not UTF-8", Buffer.from([0x62, 0xff]), "base", {}),
  named("qcow2 backing file", "", { oracle: "qemu-img" }),
  named("QED backing file", "", { oracle: "qemu-img" }),
  named("data file", "", { oracle: "qemu-img" }),
  named("qcow2 backing file", "y".repeat(1024), { oracle: "qemu-img", expected: "refused" }),
  named("qcow2 backing file", "\0", { oracle: "qemu-img" }),
]);

describe("files that images name", () => {
  // A FIFO blocks whoever opens it plainly, and shows through its state that nobody did.
  it.each(ROLES)(
    "info does not open a FIFO that is the %s, and map does not hang on it",
    async (role) => {
      await withScratch("fifo", async (directory) => {
        await run("mkfifo", [join(directory, "fifo")]);
        const path = naming(directory, role, "fifo");
        const info = await checkedTsimgfs(["info", "--output", "json", path]);
        expect(info.status).toBe(0);
        const map = await checkedTsimgfs(["map", path]);
        expect(map.status).toBe(1);
        expect(map.stderr).toContain("fifo");
      });
    },
  );

  it("a mount follows the policy: none refuses in one line that names the file", async () => {
    await withScratch("policy", async (directory) => {
      writeFileSync(join(directory, "base"), bytes);
      const path = naming(directory, "qcow2 backing file", "base");
      const point = join(directory, "point");
      mkdirSync(point);
      const result = await checkedTsimgfs(
        ["mount", "-r", "--backing-policy", "none", path, point],
        dirname(path),
      );
      expect(result.status).toBe(1);
      expect(result.stderr).toContain(basename(path));
    });
  });
});
