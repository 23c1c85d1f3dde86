// `tsimgfs io` beside qemu-io: the same words and exit status for the same commands, and the same disk afterwards.

import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSameDisk, ioBesideQemu } from "../support/io-beside-qemu.ts";
import { createImage, type ImageFormat, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;

interface Sample {
  readonly name: string;
  readonly format: ImageFormat;
  readonly options?: Readonly<Record<string, string | number>>;
}

const SAMPLES: readonly Sample[] = [
  { name: "v3", format: "qcow2" },
  { name: "v2", format: "qcow2", options: { compat: "0.10" } },
  { name: "sub-clusters", format: "qcow2", options: { extended_l2: "on" } },
  { name: "small clusters", format: "qcow2", options: { cluster_size: 512 } },
  { name: "raw", format: "raw" },
  { name: "QED", format: "qed" },
];

let directory: string;

const pathOf = ({ name, format }: Sample): string => join(directory, `${name}.${format}`);
const text = (): string => join(directory, "text");

beforeAll(async () => {
  directory = await makeScratch("io");
  writeFileSync(text(), new Random("text").text(3_000_001));
  for (const sample of SAMPLES) {
    const { format, options = {} } = sample;
    await createImage(pathOf(sample), format, { size: 10 * MIB, options });
    await qemuIo(pathOf(sample), format, ["write -P 1 0 100k", "write -P 2 3M 1M"]);
  }
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe.each(SAMPLES)("commands on $name beside qemu-io", (sample) => {
  const { format } = sample;

  it("show the disk in the same words", async () => {
    await ioBesideQemu(pathOf(sample), { format }, [
      ...["length", "info", "map", "alloc 0", "alloc 0 1M", "alloc 64k 20M", "alloc 10M"],
      ...["alloc 11M", "alloc 3M 0", "alloc 99k 3k", "alloc 4M 1", "l", "i"],
      ...["read 0 64k", "r 0 512", "read -v 102390 33", "read 0 33 -v", "read -C 0 33"],
      ...["read -q 0 33", "read -qv 0 33", "read -p 0 1", "read 0 0", "read 10M 0"],
      ...["read -P 1 0 100k", "read -qP1 0 100k", "read -P 2 -s 1k -l 512 3144704 3k"],
      ...["read 0 10M", "read -P 0 4M 6M", "flush", "f", "sleep 1", "sleep 010", "", "  "],
    ]);
  });

  it("change the disk in the same way", async () => {
    const pair = await ioBesideQemu(pathOf(sample), { format }, [
      ...["write 1000 5000", "w 5M 3", "write -P 0x41 10485759 1", "write -f 6M 70k"],
      ...[
        `write -s ${text()} 7M 100k`,
        `write -s ${text()} 1 3000005`,
        "write -q 0 1",
        "write -C 0 1",
      ],
      ...["write -p 9M 1M", "write -z 3M 5000", "write -zu 3500k 129k", "write -zf 77 77"],
      ...["write -P 0 2M 1k", "read -v 1990 20", "read -v 3145700 33", "read -P 0 3500k 129k"],
      ...["flush", "map", "read 0 10M"],
    ]);
    await expectSameDisk(format, pair);
  });

  it("refuse the same, and go on", async () => {
    const { result } = await ioBesideQemu(pathOf(sample), { format }, [
      ...["foo", "read", "read 0", "read 0 1 2", "read -x 0 1", "r -x 0 1", "read 0 1 -P"],
      ...["read -P 300 0 512", "read -P xyz 0 1", "read abc 1", "read 0 abc", "read -s 1 0 512"],
      ...["read -l 1 0 512", "read -P 1 -s 512 -l 512 0 512", "read -P 1 -s 600 0 512"],
      ...["read -P 1 -s x 0 1", "read 10M 1", "read 10485000 1024", "read 11M 0", "read 0 3G"],
      ...[
        "read 8E 512",
        "read -- -1 512",
        "read - 1",
        "read --foo 0 1",
        "read -a 0 1",
        "read 0 8E",
      ],
      ...["read -P 9 0 33", "read -q -P 9 0 33", "read -b 1 512", "read -b 0 1"],
      ...["write", "write -x 0 1", "write -z -P 1 0 512", "write -u 0 512", "write -n 0 512"],
      ...["write -bz 0 64k", "write -cu 0 64k", "write -fc 0 64k", "write -bf 0 512"],
      ...[
        "write -P 1 -s /dev/zero 0 512",
        "write -zs /dev/zero 0 1",
        "write 0 3G",
        "write -z 0 3G",
      ],
      ...["write 10M 1", "write -z 10M 1", "write -zn 0 20M", "write -b 1 512", "write -c 100 64k"],
      ...[
        "write -c 0 100",
        "write -c 9M 2M",
        "write 0 x",
        "discard",
        "discard 0",
        "discard -x 0 1",
      ],
      ...["discard 0 1 2", "discard 10M 1", "discard 0 3G", "discard x 1", "flush 1", "length 1"],
      ...["map 1", "alloc", "alloc 1 2 3", "alloc x", "alloc 0 x", "sleep", "sleep x", "sleep -1"],
      ...["truncate", "truncate x", "truncate -x 9M", "truncate -m", "truncate -m foo 9M"],
      ...["truncate 1 2 3 4", "help foo", "help 1 2", "d", 'read "0" 1', "read 0\t1"],
      "length",
    ]);
    expect(result.status).toBe(1);
    expect(result.stdout).toMatch(/10 MiB\n$/);
  });

  it("discard the same, whole clusters only", async () => {
    const pair = await ioBesideQemu(pathOf(sample), { format }, [
      ...["discard 100 1000", "read -P 1 0 100", "discard 3145729 65535", "map"],
      ...["discard 3M 1M", "discard -C 0 64k", "discard -q 0 64k", "map", "discard 0 10M", "map"],
      ...["write -P 3 5000 3", "discard 0 5001", "read -v 4999 5", "alloc 0 10M"],
    ]);
    await expectSameDisk(format, pair);
  });

  it("discard nothing where that is switched off", async () => {
    const flags = ["-d", "ignore"];
    const pair = await ioBesideQemu(pathOf(sample), { format, flags }, [
      ...["discard 0 10M", "read -P 1 0 100k", "read -P 2 3M 1M", "map"],
    ]);
    await expectSameDisk(format, pair);
  });

  it("change the size in the same way", async () => {
    const pair = await ioBesideQemu(pathOf(sample), { format }, [
      ...["truncate 10487000", "truncate 10500096", "length", "read -P 0 10M 14k"],
      ...[
        "write -P 7 10485760 14336",
        "truncate 10M",
        "length",
        "truncate 20M",
        "read -P 0 10M 10M",
      ],
      ...["t 3200k", "length", "read -P 2 3M 128k", "truncate -m off 4M", "read -P 0 3200k 896k"],
      ...["truncate -m falloc 5M", "read -P 0 4M 1M", "truncate -m falloc 1M", "length"],
      ...[
        "truncate 0",
        "length",
        "map",
        "alloc 0",
        "read 0 0",
        "read 0 1",
        "truncate 1M",
        "length",
      ],
    ]);
    await expectSameDisk(format, pair);
  });

  it("read what random commands have written", async () => {
    for (let round = 0; round < byScale(1, 20); round++) {
      const random = new Random(`io ${sample.name} ${round}`);
      const commands = Array.from({ length: 40 }, () => randomCommand(random, sample));
      const pair = await ioBesideQemu(pathOf(sample), { format }, commands);
      await expectSameDisk(format, pair);
    }
  });
});

/**
 * A command on any range of the disk; what it reads comes as text. None compresses: QEMU 7.2 goes on
 * packing streams into a cluster that was freed meanwhile.
 */
function randomCommand(random: Random, { format }: Sample): string {
  const alignment = random.pick([1, 512, 4096, 65536]);
  const units = (10 * MIB) / alignment;
  const first = random.below(units);
  const length = Math.min(random.between(1, units - first) * alignment, 2 ** random.between(9, 21));
  const range = `${first * alignment} ${length}`;
  switch (random.below(6)) {
    case 0:
      return `read -v ${first * alignment} ${Math.min(length, 100)}`;
    case 1:
      return `write -P ${random.below(256)} ${range}`;
    case 2:
      return `write -s ${text()} ${range}`;
    case 3:
      return `write -zu ${range}`;
    case 4:
      return `write -z ${range}`;
    default:
      return format === "qed" ? `write -z ${range}` : `discard ${range}`;
  }
}

describe("numbers beside qemu-io", () => {
  it("are read and written alike", async () => {
    const sample = SAMPLES[0];
    if (sample === undefined) return expect.fail("no sample");
    const random = new Random("numbers");
    const numbers = [
      ...[
        "010",
        "0x10",
        "0X1f",
        "1.5k",
        ".5k",
        "1.5",
        "1.k",
        "1.",
        "1.0",
        "1e3",
        "1E",
        "5b",
        "5kB",
      ],
      ...["0x", "0x1.8k", "1.5e1k", "+5", "9223372036854775807", "9223372036854775808", "7E", "8E"],
      ...["99999999999999999999999", "1.0005k", "1.999999k", "0.0005k", "0.5b", "inf", "-0", "1_0"],
      ...["1088", "1216", "1048064", "1073741823", "1.0625G", "1023.9999m", "3.1415926t"],
    ];
    for (let count = 0; count < byScale(60, 2000); count++) {
      const whole = random.below(2 ** random.between(1, 40));
      const part = random.pick(["", "", `.${random.below(10 ** random.between(1, 9))}`]);
      numbers.push(`${whole}${part}${random.pick(["", "k", "K", "m", "M", "g", "T", "p"])}`);
    }
    // The offset comes back in the words of people.
    const commands = numbers.map((number) => `alloc ${number} 1`);
    await ioBesideQemu(pathOf(sample), { format: "qcow2" }, commands);
  });

  it("are named as they were written where they are too large", async () => {
    const sample = SAMPLES[0];
    if (sample === undefined) return expect.fail("no sample");
    const size = "9223372036854775807";
    const { status, stderr } = await attemptTsimgfs([
      "io",
      "-c",
      `truncate ${size}`,
      pathOf(sample),
    ]);
    expect(status).toBe(1);
    expect(stderr).toMatch(/^tsimgfs: .*: a size of 9223372036854775807 is above the limit/);
  });
});
