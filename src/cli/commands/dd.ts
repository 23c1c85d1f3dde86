/** `tsimgfs dd`: copy a part of a disk into a new image, with the operands of qemu-img dd. */

import { createCopyCursor } from "../../block/convert/copy-cursor.ts";
import { planImage } from "../../block/create-image.ts";
import { parseSize } from "../../block/parse-size.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { printable, UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import { ConvertTarget, refuseSources } from "../convert-target.ts";
import { CopyWork, copyThreads } from "../copy-work.ts";
import { type CreateFormat, CreateOptions } from "../create-options.ts";
import { requestedFormat } from "../create-request.ts";
import type { StoppedCreation } from "../creation.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { runLongWork } from "../long-work.ts";
import { type OfflineDisk, openOffline } from "../offline-disk.ts";
import {
  backingPolicyOption,
  forceShareOption,
  formatOption,
  outputFormatOption,
} from "../options.ts";
import { printMessage } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
} from "../secrets.ts";
import { hearStopSignals, type StopSignal, signalStatus } from "../stop-signals.ts";

interface DdOptions extends SecretOptions {
  readonly format?: FormatName;
  readonly outputFormat: CreateFormat;
  readonly forceShare?: boolean;
  readonly backingPolicy?: BackingPolicy;
}

const OPERANDS = ["if", "of", "bs", "count", "skip"] as const;
type Operand = (typeof OPERANDS)[number];

/** As qemu-img dd has it, bytes. */
const BLOCK_SIZE_DEFAULT = 512;
const BLOCK_SIZE_MAX = 2 ** 31 - 1;
/** Zeros from this length on are left out, bytes. */
const SPARSE_SIZE = 4096;
const THREADS = 8;

export function defineDd(command: DocumentedCommand): void {
  command
    .description("Copy part of a disk into a new image, as qemu-img dd does.")
    .usage("[options] if=<image> of=<target> [bs=] [count=] [skip=]")
    .argument(
      "<operands...>",
      "skip: first block to copy; count: where to end, in blocks from the start of the disk",
    )
    .addOption(formatOption("-f, --format <name>"))
    .addOption(outputFormatOption())
    .addOption(forceShareOption())
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      examples: [["The first MiB of a disk", "tsimgfs dd if=vm.qcow2 of=boot.raw bs=1M count=1"]],
      seeAlso: ["convert", "io", "qemu-img(1)"],
    })
    .action(copyPart);
}

async function copyPart(words: readonly string[], options: DdOptions): Promise<void> {
  const operands = parseOperands(words);
  const [input, output] = [operands.get("if"), operands.get("of")];
  if (input === undefined || output === undefined) {
    throw new UsageError("dd", "needs if=IMAGE and of=TARGET");
  }
  const source = openOffline(input, options);
  forgetSecrets();
  try {
    const { skip, size } = partOf(operands, source);
    await copyTo(output, source, { skip, size }, options);
  } finally {
    source.close();
  }
}

function parseOperands(words: readonly string[]): ReadonlyMap<Operand, string> {
  const operands = new Map<Operand, string>();
  for (const word of words) {
    const equals = word.indexOf("=");
    const name = OPERANDS.find((operand) => operand === word.slice(0, Math.max(0, equals)));
    if (name === undefined) {
      throw new UsageError("dd", `${word} is not one of ${OPERANDS.join("=, ")}=`);
    }
    operands.set(name, word.slice(equals + 1));
  }
  return operands;
}

function numberOf(operands: ReadonlyMap<Operand, string>, name: Operand): number | undefined {
  const text = operands.get(name);
  if (text === undefined) return undefined;
  const value = parseSize(`${name}=`, text);
  if (value !== undefined) return value;
  throw new UsageError(`${name}=`, `${text} is not a number, such as 512, 64k or 1M`);
}

/** The bytes that are copied: as qemu-img, `count` says where the input ends, also if some are skipped. */
function partOf(
  operands: ReadonlyMap<Operand, string>,
  { path, disk }: OfflineDisk,
): { skip: number; size: number } {
  const blockSize = numberOf(operands, "bs") ?? BLOCK_SIZE_DEFAULT;
  if (blockSize === 0 || blockSize > BLOCK_SIZE_MAX) {
    throw new UsageError("bs=", `${blockSize} is not a number in 1..${BLOCK_SIZE_MAX}`);
  }
  const count = numberOf(operands, "count") ?? Number.POSITIVE_INFINITY;
  const skipped = numberOf(operands, "skip") ?? 0;
  const skip = skipped * blockSize;
  const end = Math.min(disk.virtualSize, count * blockSize);
  if (skip <= end) return { skip, size: end - skip };
  // As with qemu-img and dd, nothing is left then.
  printMessage(
    printable(`${path}: cannot skip ${BigInt(skipped) * BigInt(blockSize)} bytes of ${end}`),
  );
  return { skip: end, size: 0 };
}

async function copyTo(
  path: string,
  source: OfflineDisk,
  part: { readonly skip: number; readonly size: number },
  { outputFormat, backingPolicy }: DdOptions,
): Promise<void> {
  const format = requestedFormat(path, outputFormat, new CreateOptions(outputFormat, []));
  refuseSources([path], [source.chain]);
  hearStopSignals();
  const threads = copyThreads(THREADS);
  const plan = planImage({ path, size: part.size, backing: undefined, format });
  const target = await ConvertTarget.create(plan, {
    format: outputFormat,
    backingPolicy,
    secrets: [],
    backingSecrets: [],
    threads,
  });
  if (!(target instanceof ConvertTarget)) {
    tellOfStop(path, target);
    return;
  }
  let signal: StopSignal | undefined;
  try {
    signal = await copy(target, source, part, threads);
  } catch (error) {
    target.close();
    throw target.discardAfter(error);
  }
  target.close();
  if (signal !== undefined) tellOfStop(path, { signal, remainder: target.giveUp() });
}

function tellOfStop(path: string, { signal, remainder }: StoppedCreation): void {
  printMessage(printable(`${path}: stopped before the end; ${remainder}`));
  process.exitCode = signalStatus(signal);
}

async function copy(
  { chain, readsAsZeros }: ConvertTarget,
  source: OfflineDisk,
  part: { readonly skip: number; readonly size: number },
  threads: number,
): Promise<StopSignal | undefined> {
  const work = new CopyWork(
    {
      ...part,
      sources: [{ layers: source.chain.layers, snapshot: undefined }],
      target: { layers: chain.layers, writing: chain.writing },
      cursor: createCopyCursor(),
      manner: {
        sparseSize: SPARSE_SIZE,
        compressed: false,
        targetIsZero: readsAsZeros,
        topOnly: false,
        salvage: false,
        offload: false,
      },
    },
    { threads, quiet: false },
  );
  return await work.run(() => runLongWork(work, { progress: false }));
}
