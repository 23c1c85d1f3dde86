/** `tsimgfs create`: a new image, with the options of qemu-img create. */

import { type CreateRequest, planImage } from "../../block/create-image.ts";
import { parseSize } from "../../block/parse-size.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { printable, UsageError } from "../../errors.ts";
import { FORMAT_NAMES, type FormatName } from "../../formats/driver.ts";
import {
  CREATE_FORMATS,
  type CreateFormat,
  CreateOptions,
  optionsHelp,
} from "../create-options.ts";
import { formattingLine, requestedFormat } from "../create-request.ts";
import { createImage } from "../creation.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { DocumentedOption } from "../documented-option.ts";
import { asksForHelp } from "../option-list.ts";
import { backingPolicyOption, choiceOption, collect, quietOption } from "../options.ts";
import { print, printMessage, printNote } from "../print.ts";
import { type SecretOptions, secretOption, secretsOf } from "../secrets.ts";
import { signalStatus } from "../stop-signals.ts";

interface CreateCommandOptions extends SecretOptions {
  readonly format: CreateFormat;
  readonly backing?: string;
  readonly backingFormat?: FormatName;
  readonly backingUnsafe?: boolean;
  readonly backingPolicy?: BackingPolicy;
  readonly options?: readonly string[];
  readonly quiet?: boolean;
}

export function defineCreate(command: DocumentedCommand): void {
  command
    .description("Create a new image, as qemu-img create does. A file that exists is overwritten.")
    .usage("[options] <image> [size]")
    .argument("[image]")
    .argument("[size]", "bytes, or with a suffix k, M, G, T, P; default: that of the backing file")
    .addOption(choiceOption("-f, --format <name>", CREATE_FORMATS, (names) => names).default("raw"))
    .option("-b, --backing <file>", "backing file; relative names start at the image's directory")
    .addOption(
      choiceOption(
        "-F, --backing-format <name>",
        FORMAT_NAMES,
        (names) => `format of the backing file: ${names}`,
      ),
    )
    .addOption(
      new DocumentedOption(
        "-u, --backing-unsafe",
        "do not open the backing file, which need not exist",
      ).minor(),
    )
    .addOption(backingPolicyOption())
    .option("-o, --options <list>", "format options NAME=VALUE,...; -o help lists them", collect)
    .addOption(secretOption())
    .addOption(quietOption("print nothing"))
    .document({
      details: [
        "If it fails or is stopped, a new file is removed. A file that existed before is empty then, unless nothing had been written to it yet.",
        ...CREATE_FORMATS.map((format) => ({ lines: optionsHelp(format).trimEnd() })),
      ],
      examples: [
        ["A new disk", "tsimgfs create -f qcow2 new.qcow2 20G"],
        ["An overlay", "tsimgfs create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2"],
      ],
      seeAlso: ["convert", "measure", "amend", "qemu-img(1)"],
    })
    .action(create);
}

async function create(
  path: string | undefined,
  sizeText: string | undefined,
  options: CreateCommandOptions,
): Promise<void> {
  const lists = options.options ?? [];
  if (asksForHelp(lists)) {
    print(optionsHelp(options.format));
    return;
  }
  if (path === undefined) throw new UsageError("create", "needs the name of the image");
  const list = new CreateOptions(options.format, lists);
  const request: CreateRequest = {
    path,
    size: requestedSize(path, sizeText, list),
    backing: requestedBacking(path, options, list),
    format: requestedFormat(path, options.format, list, secretsOf(options).secrets),
  };
  const plan = planImage(request);
  plan.warnings.forEach(printNote);
  if (options.quiet !== true) print(`${formattingLine(plan, request, list)}\n`);
  const stopped = await createImage(plan);
  if (stopped === undefined) return;
  printMessage(printable(`${path}: stopped before it was made; ${stopped.remainder}`));
  process.exitCode = signalStatus(stopped.signal);
}

function requestedSize(
  path: string,
  sizeText: string | undefined,
  list: CreateOptions,
): number | undefined {
  const option = list.size("size");
  if (sizeText === undefined) return option;
  if (option !== undefined) throw new UsageError(path, "its size is stated twice");
  const size = parseSize(path, sizeText);
  if (size !== undefined) return size;
  throw new UsageError(path, `${sizeText} is not a size, such as 512, 64k or 1.5G`);
}

function requestedBacking(
  path: string,
  options: CreateCommandOptions,
  list: CreateOptions,
): CreateRequest["backing"] {
  const name = options.backing ?? list.text("backing_file");
  const format = options.backingFormat ?? list.word("backing_fmt", FORMAT_NAMES);
  if (name === undefined) {
    if (format === undefined) return undefined;
    throw new UsageError(path, "the format of a backing file is stated, but no backing file");
  }
  if (name === "") throw new UsageError(path, "the name of the backing file is empty");
  if (format === undefined) {
    throw new UsageError(path, `the format of the backing file ${name} must be stated (-F)`);
  }
  return { name, format, open: options.backingUnsafe !== true, policy: options.backingPolicy };
}
