// Another name of the external data file: qemu-img sees the new one, or the old one after a crash, and finds all else as it was.

import { rename } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { setDataFileName } from "../../src/formats/qcow2/data-file-name.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { asRecord } from "../support/json.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../support/recording-storage.ts";
import { run, runJson } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;

interface Kind {
  readonly title: string;
  readonly options: Readonly<Record<string, string>>;
  readonly isOverlay?: true;
  /** Bytes of names that certainly fit twice. */
  readonly nameMax: number;
}

const KINDS: readonly Kind[] = [
  { title: "alone", options: {}, nameMax: 1023 },
  { title: "raw", options: { data_file_raw: "on" }, nameMax: 1023 },
  { title: "over a backing file", options: { cluster_size: "8k" }, isOverlay: true, nameMax: 1023 },
  { title: "small clusters", options: { cluster_size: "1k" }, isOverlay: true, nameMax: 150 },
];

async function makeImage(directory: string, { options, isOverlay }: Kind): Promise<string> {
  const [image, data, base] = ["image", "data", "base"].map((name) => join(directory, name)) as [
    string,
    string,
    string,
  ];
  await createImage(base, "raw", { size: MIB });
  await qemuIo(base, "raw", ["write -q -P 1 0 1M"]);
  await createImage(image, "qcow2", {
    size: MIB,
    options: { ...options, data_file: data },
    ...(isOverlay && { backing: { file: base, format: "raw" } }),
  });
  await qemuIo(image, "qcow2", ["write -q -P 2 64k 64k"]);
  return image;
}

/** What qemu-img says of an image, whose data file need not have the name that is stored. */
async function infoOf(image: string, data: string): Promise<{ name: unknown; rest: unknown }> {
  const source = `driver=qcow2,file.filename=${image},data-file.filename=${data}`;
  const info = await runJson("qemu-img", ["info", "--output=json", "--image-opts", source]);
  const { "format-specific": specific, "actual-size": _, ...general } = asRecord(info);
  const { data: details, ...type } = asRecord(specific);
  const { "data-file": name, ...features } = asRecord(details);
  return { name, rest: { ...general, ...type, ...features } };
}

describe("qemu-img sees the data file that setDataFileName has set, or the old one after a crash:", () => {
  it.each(KINDS.map((kind) => [kind.title, kind] as const))("%s", async (title, kind) => {
    await withScratch("data-file-name", async (directory) => {
      const image = await makeImage(directory, kind);
      const data = join(directory, "data");
      const random = new Random(title);
      const { rest } = await infoOf(image, data);
      let content = SparseFile.load(image);
      let old = data;
      for (let step = 0; step < byScale(3, 40); step++) {
        const wanted = random
          .text(random.between(1, random.pick([8, 80, kind.nameMax])))
          .toString();
        const initial = content.clone();
        const log: RecordingLog = { operations: [] };
        const storage = new RecordingStorage(image, content, log, 0);
        setDataFileName(storage, wanted);
        content = storage.content;
        const states = new CrashStates([initial], log);
        for (let position = 0; position <= log.operations.length; position++) {
          const [state] = states.random(position, random.pick(STRATEGIES), random);
          state?.save(image);
          const found = await infoOf(image, data);
          expect([old, wanted]).toContain(found.name);
          expect(found.rest).toEqual(rest);
        }
        content.save(image);
        expect((await infoOf(image, data)).name).toBe(wanted);
        old = wanted;
      }
    });
  });
});

describe("tsimgfs amend -o data_file", () => {
  it("names a data file that has moved, with the header that qemu-img amend makes", async () => {
    await withScratch("data-file-name", async (directory) => {
      const [kind] = KINDS;
      if (kind === undefined) throw new Error("no kind");
      const image = await makeImage(directory, kind);
      const [data, moved] = [join(directory, "data"), join(directory, "moved, data")];
      const expected = join(directory, "expected");
      await run("qemu-img", ["convert", "-O", "raw", image, expected]);
      await rename(data, moved);
      await tsimgfs(["amend", "-o", `data_file=${moved.replace(",", ",,")}`, image]);
      await run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", image, expected]);
      await tsimgfs(["compare", "-F", "raw", image, expected]);
      await run("qemu-img", ["check", "-q", image]);
      const ours = await infoOf(image, expected);
      await run("qemu-img", ["amend", "-o", `data_file=${expected}`, image]);
      expect((await infoOf(image, expected)).rest).toEqual(ours.rest);
    });
  });

  it("clears data_file_raw with it, and refuses names that no image could be opened with", async () => {
    await withScratch("data-file-name", async (directory) => {
      const image = await makeImage(directory, {
        title: "",
        options: { data_file_raw: "on" },
        nameMax: 0,
      });
      const before = (await run("sha256sum", [image])).stdout;
      for (const name of ["", "x".repeat(1024)]) {
        await expectRefusal(["amend", "-o", `data_file=${name}`, image], [/must have 1 to 1023/]);
      }
      expect((await run("sha256sum", [image])).stdout).toBe(before);
      const moved = join(directory, "moved");
      await tsimgfs(["amend", "-o", `data_file=${moved},data_file_raw=off`, image]);
      const { name, rest } = await infoOf(image, join(directory, "data"));
      expect(name).toBe(moved);
      expect(rest).toMatchObject({ "data-file-raw": false });
    });
  });
});
