// Chains of encrypted images with passphrases of their own: every command gives each image its own, as QEMU is told, or refuses.

import { writeFileSync } from "node:fs";
import { copyFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createEncryptedImage, PASSPHRASE } from "../support/encrypted-image.ts";
import { mounted } from "../support/mounted.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;
const SIZE = 4 * MIB;

/** Images from the top on, and the passphrase of each. */
const CHAIN = [
  { name: "top", format: "aes", passphrase: "of the top" },
  { name: "middle", format: "luks", passphrase: PASSPHRASE },
  { name: "plain", format: undefined, passphrase: undefined },
  { name: "base", format: "aes", passphrase: "of the base" },
] as const;

let directory = "";

const path = (name: string): string => join(directory, name);
const key = (name: string): string => path(`${name}.key`);

/** What QEMU's programs are told to open the chain from one of its images on. */
function source(top: (typeof CHAIN)[number]["name"]): string[] {
  const layers = CHAIN.slice(CHAIN.findIndex(({ name }) => name === top));
  const objects = layers.flatMap(({ name, passphrase }) =>
    passphrase === undefined ? [] : ["--object", `secret,id=${name},data=${passphrase}`],
  );
  const parts = layers.map(({ name, passphrase }, depth) => {
    const at = "backing.".repeat(depth);
    const secret = passphrase === undefined ? "" : `,${at}encrypt.key-secret=${name}`;
    return `${at}driver=qcow2,${at}file.filename=${path(name)}${secret}`;
  });
  return [...objects, "--image-opts", parts.join(",")];
}

async function writeWithQemu(
  name: (typeof CHAIN)[number]["name"],
  commands: readonly string[],
): Promise<void> {
  await run("qemu-io", [...commands.flatMap((command) => ["-c", command]), ...source(name)]);
}

async function contentOf(name: (typeof CHAIN)[number]["name"]): Promise<string> {
  const raw = path(`${name}.expected`);
  await run("qemu-img", ["convert", "-O", "raw", ...source(name), raw]);
  return raw;
}

/** Options with the passphrases of all images. */
const secretsOf = (top: string, ...below: readonly string[]): string[] => [
  ...["--secret", key(top)],
  ...below.flatMap((name) => ["--backing-secret", key(name)]),
];
const SECRETS = (): string[] => secretsOf("top", "middle", "base");

beforeAll(async () => {
  directory = await makeScratch("encrypted-chains");
  for (const [index, { name, format, passphrase }] of [...CHAIN.entries()].reverse()) {
    const below = CHAIN[index + 1];
    const backing = below === undefined ? [] : ["-u", "-b", path(below.name), "-F", "qcow2"];
    if (passphrase !== undefined) writeFileSync(key(name), passphrase);
    if (format === "luks") {
      const options = ["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.key-secret=key"];
      await createEncryptedImage(path(name), options, String(SIZE), backing);
    } else {
      const object = ["--object", `secret,id=${name},data=${passphrase}`];
      const encryption = ["-o", `encrypt.format=aes,encrypt.key-secret=${name}`];
      const more = passphrase === undefined ? [] : [...object, ...encryption];
      await run("qemu-img", [
        "create",
        "-q",
        "-f",
        "qcow2",
        ...more,
        ...backing,
        path(name),
        String(SIZE),
      ]);
    }
    const from = index * 256;
    await writeWithQemu(name, [
      `write -q -P ${index + 1} ${from}k 300k`,
      `write -q -P 9 ${index}M 70k`,
    ]);
  }
});

afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

describe("chains of encrypted images", () => {
  it("are read by convert, compare, dd, io and a mount", async () => {
    const expected = await contentOf("top");
    const raw = path("ours.raw");
    await tsimgfs(["convert", ...SECRETS(), "-O", "raw", path("top"), raw]);
    await run("cmp", [raw, expected]);
    await tsimgfs(["compare", ...SECRETS(), "-F", "raw", path("top"), expected]);
    await tsimgfs(["dd", ...SECRETS(), "-O", "raw", `if=${path("top")}`, `of=${raw}`, "bs=1M"]);
    await run("cmp", [raw, expected]);
    const { stdout } = await tsimgfs([
      "io",
      "-r",
      ...SECRETS(),
      "-c",
      "read -P 4 900k 100k",
      path("top"),
    ]);
    expect(stdout).toMatch(/read 102400\/102400 bytes at offset 921600/);
    await mounted([path("top")], { args: ["-r", ...SECRETS()] }, async (mount) => {
      await run("cmp", [mount.device(path("top")), expected]);
    });
  });

  it("are changed by stream, rebase and commit, and nothing is mixed up", async () => {
    const expected = await contentOf("top");
    const copy = path("copy");
    await copyFile(path("top"), copy);
    const flat = ["--object", "secret,id=k,data=of the top", "--image-opts"];
    const alone = [...flat, `driver=qcow2,file.filename=${copy},encrypt.key-secret=k`];
    await tsimgfs(["rebase", ...SECRETS(), "-b", "", copy]);
    await run("qemu-img", ["convert", "-O", "raw", ...alone, path("rebased")]);
    await run("cmp", [path("rebased"), expected]);
    await copyFile(path("top"), copy);
    await tsimgfs(["stream", ...SECRETS(), copy]);
    await run("qemu-img", ["convert", "-O", "raw", ...alone, path("streamed")]);
    await run("cmp", [path("streamed"), expected]);
    await tsimgfs(["commit", ...SECRETS(), path("top")]);
    await run("cmp", [await contentOf("middle"), expected]);
    await run("cmp", [await contentOf("top"), expected]);
  });

  it("are refused where passphrases are too few, too many, wrong or ambiguous", async () => {
    const convert = (secrets: readonly string[], name = "top"): string[] => [
      ...["convert", "-O", "raw", ...secrets, path(name), path("refused.raw")],
    ];
    const cases: readonly (readonly [secrets: readonly string[], name: string, reason: RegExp])[] =
      [
        [
          secretsOf("top", "middle"),
          "top",
          /base: is encrypted backing file 2 of .*top, and has no/,
        ],
        [secretsOf("top", "middle", "base", "top"), "top", /has 2 encrypted backing files, and 3/],
        [secretsOf("top", "base", "middle"), "top", /middle: .*passphrase/],
        [
          ["--secret", key("top"), "--secret", key("middle")],
          "top",
          /base: is encrypted with legacy AES, where a wrong passphrase cannot be told/,
        ],
        [secretsOf("middle", "top", "base"), "middle", /has 1 encrypted backing files, and 2/],
      ];
    for (const [secrets, name, reason] of cases)
      await expectRefusal(convert(secrets, name), [reason]);
  });

  it("with LUKS alone may have all passphrases as --secret, in any order", async () => {
    await createImage(path("raw.img"), "raw", { size: SIZE });
    await qemuIo(path("raw.img"), "raw", ["write -q -P 5 0 4M"]);
    await tsimgfs([
      "rebase",
      "-u",
      "-b",
      path("raw.img"),
      "-F",
      "raw",
      ...["--secret", key("middle")],
      path("middle"),
    ]);
    const over = path("over");
    writeFileSync(path("over.key"), "of the one above");
    const options = ["encrypt.format=luks", "encrypt.iter-time=10"].flatMap((each) => ["-o", each]);
    const create = ["create", "-q", "-f", "qcow2", "--secret", key("over"), ...options];
    await tsimgfs([...create, "-b", path("middle"), "-F", "qcow2", over, String(SIZE)]);
    const outputs: string[] = [];
    for (const order of [
      ["over", "middle"],
      ["middle", "over"],
    ]) {
      const secrets = order.flatMap((name) => ["--secret", key(name)]);
      await tsimgfs(["convert", ...secrets, "-O", "raw", over, path("either.raw")]);
      outputs.push((await run("sha256sum", [path("either.raw")])).stdout);
    }
    expect(outputs[0]).toBe(outputs[1]);
    await tsimgfs(["compare", ...secretsOf("over", "middle"), over, path("either.raw")]);
  });
});
