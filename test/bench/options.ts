/** The benchmark's command line and environment. */

import { tmpdir } from "node:os";
import { parseArgs } from "node:util";
import { CELL_NAMES, type CellName } from "./cells.ts";
import { IMAGE_NAMES, type ImageName } from "./image-names.ts";
import { DEFAULT_SERVERS, SERVER_NAMES, type ServerName } from "./servers.ts";

const KIND_NAMES = ["read", "write", "copy", "slow"] as const;
export type KindName = (typeof KIND_NAMES)[number];
/** Those that are measured unless others are asked for. */
const DEFAULT_KINDS: readonly KindName[] = ["read", "write", "copy"];

export interface Options {
  readonly rounds: number;
  /** Length of one fio measurement. */
  readonly seconds: number;
  /** Virtual size of the images; the compressed one has half of it. */
  readonly sizeMib: number;
  readonly threads: number | undefined;
  readonly kinds: readonly KindName[];
  readonly images: readonly ImageName[];
  /** Undefined: the cells that belong to each image. */
  readonly cells: readonly CellName[] | undefined;
  readonly servers: readonly ServerName[];
  readonly directory: string;
  /** Path of rawfuse.c, or of the program built from it. */
  readonly rawfuse: string | undefined;
}

export const USAGE = `usage: npm run bench -- [options]
  --quick            fewer and shorter rounds on smaller images: a look, not a result
  --rounds N         rounds per image (5; quick: 2)
  --seconds S        length of each fio measurement (1; quick: 0.5)
  --size MIB         virtual size of the images (1024; quick: 512)
  --only KIND        only the cells of this kind: ${KIND_NAMES.join(", ")} (all but slow)
  --image NAME       only this image; repeatable: ${IMAGE_NAMES.join(", ")}
  --cell NAME        only this cell; repeatable: ${CELL_NAMES.join(", ")}
  --server NAME      only this server; repeatable: ${SERVER_NAMES.join(", ")} (all but fuse-native)
  --threads N        I/O threads of tsimgfs (its default)
  --directory DIR    where the images are made (the directory for temporary files)
environment: TSIMGFS_BENCH_RAWFUSE=PATH  rawfuse.c, or the program built from it: the C server to compare with
`;

/** Undefined if help was asked for. Throws with the reason if the arguments are wrong. */
export function parseOptions(args: string[]): Options | undefined {
  const { values } = parseArgs({
    args,
    options: {
      help: { type: "boolean", short: "h" },
      quick: { type: "boolean" },
      rounds: { type: "string" },
      seconds: { type: "string" },
      size: { type: "string" },
      threads: { type: "string" },
      directory: { type: "string" },
      only: { type: "string", multiple: true },
      image: { type: "string", multiple: true },
      cell: { type: "string", multiple: true },
      server: { type: "string", multiple: true },
    },
  });
  if (values.help) return undefined;
  const { TSIMGFS_BENCH_RAWFUSE: rawfuse } = process.env;
  return {
    rounds: integer("--rounds", values.rounds) ?? (values.quick ? 2 : 5),
    seconds: positive("--seconds", values.seconds) ?? (values.quick ? 0.5 : 1),
    sizeMib: integer("--size", values.size) ?? (values.quick ? 512 : 1024),
    threads: integer("--threads", values.threads),
    kinds: chosen("--only", KIND_NAMES, values.only) ?? DEFAULT_KINDS,
    images: chosen("--image", IMAGE_NAMES, values.image) ?? IMAGE_NAMES,
    cells: chosen("--cell", CELL_NAMES, values.cell),
    servers: chosen("--server", SERVER_NAMES, values.server) ?? DEFAULT_SERVERS,
    directory: values.directory ?? tmpdir(),
    rawfuse: rawfuse === "" ? undefined : rawfuse,
  };
}

function positive(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!(value > 0 && value <= 1e6))
    throw new Error(`${option} ${text}: a positive number is needed`);
  return value;
}

function integer(option: string, text: string | undefined): number | undefined {
  const value = positive(option, text);
  if (value !== undefined && !Number.isInteger(value))
    throw new Error(`${option} ${text}: a whole number is needed`);
  return value;
}

/** The names asked for, in the order of `all`. */
function chosen<T extends string>(
  option: string,
  all: readonly T[],
  wanted: readonly string[] | undefined,
): T[] | undefined {
  if (wanted === undefined) return undefined;
  const unknown = wanted.find((name) => !all.some((known) => known === name));
  if (unknown !== undefined) throw new Error(`${option} ${unknown}: not one of ${all.join(", ")}`);
  return all.filter((name) => wanted.includes(name));
}
