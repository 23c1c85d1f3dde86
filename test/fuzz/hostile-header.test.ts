// Every qcow2 header field at its extremes, and header extensions that lie about themselves.

import { describeHostile, type HostileCase, imageFile } from "../support/hostile-case.ts";
import { type QCOW2_SAMPLES, qcow2Sample } from "../support/hostile-samples.ts";
import {
  AUTOCLEAR_BITMAPS,
  bitmapsExtension,
  EXTENSION_BACKING_FORMAT,
  EXTENSION_BITMAPS,
  EXTENSION_CRYPTO_HEADER,
  EXTENSION_DATA_FILE,
  EXTENSION_END,
  EXTENSION_FEATURE_NAMES,
  featureNameTable,
  QCOW2_HEADER_FIELDS,
  type Qcow2Extension,
  type Qcow2HeaderField,
  qcow2HeaderFieldNames,
} from "../support/qcow2-header-builder.ts";

const EXTREMES_U8 = [0, 1, 2, 127, 128, 254, 255].map(BigInt);
const EXTREMES_U32 = [
  0, 1, 2, 3, 7, 8, 9, 16, 21, 22, 31, 32, 63, 64, 65536, 65537, 0x7fff_ffff, 0x8000_0000,
].map(BigInt);
const EXTREMES_U64 = [0n, 1n, 511n, 512n, 1n << 31n, 1n << 32n, 1n << 40n];
const HUGE_U64 = [53n, 56n, 61n, 62n, 63n].flatMap((bit) => [
  (1n << bit) - 512n,
  (1n << bit) - 1n,
  1n << bit,
  (1n << bit) + 4096n,
]);

/** Values to try for a field whose right value is `right`, in a file of `fileSize` bytes. */
function extremes(field: Qcow2HeaderField, right: bigint, fileSize: number): bigint[] {
  const near = [right - 1n, right + 1n, right + 8n, right + 512n, right + 4096n, right * 2n];
  const atEnd = [BigInt(fileSize) - 4096n, BigInt(fileSize), BigInt(fileSize) + 4096n];
  const size = QCOW2_HEADER_FIELDS[field].size;
  const max = (1n << BigInt(size * 8)) - 1n;
  const fixed =
    size === 1 ? EXTREMES_U8 : size === 4 ? EXTREMES_U32 : [...EXTREMES_U64, ...HUGE_U64, ...atEnd];
  const values = [...fixed, ...near, max - 1n, max];
  return [...new Set(values)].filter((value) => value >= 0n && value <= max && value !== right);
}

function fieldCases(sample: (typeof QCOW2_SAMPLES)[number]): HostileCase[] {
  const names = qcow2HeaderFieldNames(sample === "version 2" ? 2 : 3);
  return names.flatMap((field) => {
    const right = qcow2Sample(sample);
    return extremes(field, right.header(field), right.bytes.length).map((value) => ({
      name: `${sample}: ${field} = 0x${value.toString(16)}`,
      format: "qcow2" as const,
      write: (directory: string) =>
        imageFile(qcow2Sample(sample).setHeader(field, value).bytes)(directory),
    }));
  });
}

describeHostile("header fields of qcow2 version 3", fieldCases("version 3"), 6);
describeHostile("header fields of qcow2 version 2", fieldCases("version 2"), 8);

const FEATURE_FIELDS = [
  "incompatible_features",
  "compatible_features",
  "autoclear_features",
] as const;

describeHostile(
  "single feature bits",
  FEATURE_FIELDS.flatMap((field) =>
    [0, 1, 2, 3, 4, 5, 31, 32, 60, 63].flatMap((bit) =>
      (["version 3", "extended L2", "zstd"] as const).map((sample) => ({
        name: `${sample}: ${field} bit ${bit} flipped`,
        format: "qcow2" as const,
        write: (directory: string) => {
          const image = qcow2Sample(sample);
          return imageFile(image.setHeader(field, image.header(field) ^ (1n << BigInt(bit))).bytes)(
            directory,
          );
        },
      })),
    ),
  ),
  2,
);

describeHostile("features that must be named or tolerated", [
  {
    name: "an unknown incompatible bit is refused by the name in the feature table",
    format: "qcow2",
    write: imageFile(qcow2Sample("version 3", { incompatible: 1n << 60n }).bytes),
    expected: "refused",
    reason: /time travel/,
    command: "always",
  },
  {
    name: "a feature name of control characters stays one printable line",
    format: "qcow2",
    write: imageFile(
      qcow2Sample("version 3", {
        incompatible: 1n << 60n,
        extensions: [
          featureNameTable([{ kind: 0, bit: 60, name: "a\nb\u001b[2Jc\u007f\r\ttsimgfs: \u2028" }]),
        ],
      }).bytes,
    ),
    expected: "refused",
    command: "always",
  },
  {
    name: "a feature name that is not UTF-8 stays one printable line",
    format: "qcow2",
    write: imageFile(
      qcow2Sample("version 3", {
        incompatible: 1n << 60n,
        extensions: [
          featureNameTable([
            { kind: 0, bit: 60, name: Buffer.from([0xff, 0xfe, 0x9b, 0x80, 0x0a]) },
          ]),
        ],
      }).bytes,
    ),
    expected: "refused",
    command: "always",
  },
  {
    name: "the dirty and corrupt bits leave the image readable",
    format: "qcow2",
    write: imageFile(qcow2Sample("version 3", { incompatible: 3n }).bytes),
    expected: "open",
    command: "always",
  },
  {
    name: "unknown compatible bits and a longer header are tolerated",
    format: "qcow2",
    write: imageFile(
      qcow2Sample("version 3", { headerLength: 160, header: { compatible_features: -1 } }).bytes,
    ),
    expected: "open",
    command: "always",
  },
]);

/** Types: known ones, an unknown one, and the end marker with a length. */
const EXTENSION_TYPES = [
  EXTENSION_END,
  EXTENSION_BACKING_FORMAT,
  EXTENSION_FEATURE_NAMES,
  EXTENSION_BITMAPS,
  EXTENSION_CRYPTO_HEADER,
  EXTENSION_DATA_FILE,
  0xffff_ffff,
] as const;
const EXTENSION_LENGTHS = [
  0, 1, 7, 8, 9, 15, 16, 17, 24, 47, 48, 49, 255, 1023, 1024, 3968, 3976, 3984, 4096, 65536,
];
const EXTENSION_HUGE = [0x7fff_fff8, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, 0xffff_ffff];

function extensionCase(
  name: string,
  extensions: readonly Qcow2Extension[],
  more = {},
): HostileCase {
  return {
    name,
    format: "qcow2",
    write: (directory) =>
      imageFile(qcow2Sample("version 3", { extensions, ...more }).bytes)(directory),
  };
}

describeHostile(
  "header extensions of every length",
  EXTENSION_TYPES.flatMap((type) =>
    [...EXTENSION_LENGTHS, ...EXTENSION_HUGE].map((length) =>
      extensionCase(`type 0x${type.toString(16)} length ${length}`, [
        { type, data: "raw", length },
      ]),
    ),
  ),
  3,
);

describeHostile("header extensions that contradict", [
  extensionCase(
    "no end marker and a full cluster",
    [{ type: 0x1111_1111, data: Buffer.alloc(3976) }],
    {
      endMarker: "missing",
    },
  ),
  extensionCase("one type twice", [
    { type: EXTENSION_BACKING_FORMAT, data: "raw" },
    { type: EXTENSION_BACKING_FORMAT, data: "qcow2" },
  ]),
  extensionCase(
    "400 empty extensions",
    Array.from({ length: 400 }, () => ({ type: 0x2222_2222, data: "" })),
  ),
  extensionCase("a feature name table with a partial row", [
    { type: EXTENSION_FEATURE_NAMES, data: Buffer.alloc(50, 0xff) },
  ]),
  ...[
    { count: 0, directorySize: 32, directoryOffset: 4096 },
    { count: 1, directorySize: 32, directoryOffset: 4097 },
    { count: 1, directorySize: 32, directoryOffset: -4096 },
    { count: 1, directorySize: -1, directoryOffset: 4096 },
    { count: 65536, directorySize: 65535 * 1024, directoryOffset: 4096 },
    { count: 65535, directorySize: 65535 * 1024 + 1, directoryOffset: 4096 },
    { count: 1, directorySize: 65535 * 1024, directoryOffset: 1n << 40n },
  ].flatMap((bitmaps) =>
    [0n, AUTOCLEAR_BITMAPS].map((autoclear_features) => ({
      ...extensionCase(
        `bitmaps ${JSON.stringify(bitmaps, (_key, value) => (typeof value === "bigint" ? String(value) : value))}, autoclear ${autoclear_features}`,
        [bitmapsExtension(bitmaps)],
        { header: { autoclear_features } },
      ),
      // We do not use bitmaps when reading: ignoring a damaged directory is as right as refusing it.
      oracle: "none" as const,
    })),
  ),
]);
