/** `tsimgfs amend`: other properties for an image that exists, as qemu-img amend. */

import { AmendJob } from "../../block/amend-job.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { printable, UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import { AmendOptions, amendOptionsHelp } from "../amend-options.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { runLongWork } from "../long-work.ts";
import { asksForHelp } from "../option-list.ts";
import {
  backingPolicyOption,
  collect,
  formatOption,
  progressOption,
  quietOption,
} from "../options.ts";
import { print, printMessage, printNote } from "../print.ts";
import { backingSecretOption, type SecretOptions, secretOption, secretsOf } from "../secrets.ts";
import { signalStatus } from "../stop-signals.ts";

interface AmendCommandOptions extends SecretOptions {
  readonly options?: readonly string[];
  readonly progress?: boolean;
  readonly quiet?: boolean;
  readonly format?: FormatName;
  readonly backingPolicy?: BackingPolicy;
}

export function defineAmend(command: DocumentedCommand): void {
  command
    .description(
      "Change properties of a qcow2 image, as qemu-img amend does; its data stays the same. It can be stopped at any time: the image is always valid, with all, some or none of the changes.",
    )
    .usage("[options] -o <list> <image>")
    .argument("[image]")
    .option("-o, --options <list>", "NAME=VALUE,...; -o help lists what can be changed", collect)
    .addOption(progressOption())
    .addOption(quietOption())
    .addOption(formatOption("-f, --format <name>"))
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      details: [{ lines: amendOptionsHelp().trimEnd() }],
      examples: [
        [
          "Version 3 with 8-bit refcounts",
          "tsimgfs amend -p -o compat=1.1,refcount_bits=8 vm.qcow2",
        ],
      ],
      seeAlso: ["create", "rebase", "resize", "qemu-img(1)"],
    })
    .action(amend);
}

async function amend(image: string | undefined, options: AmendCommandOptions): Promise<void> {
  const lists = options.options ?? [];
  if (asksForHelp(lists)) {
    print(amendOptionsHelp());
    return;
  }
  if (image === undefined) throw new UsageError("amend", "needs the name of the image");
  if (lists.length === 0) throw new UsageError("amend", "must specify options (-o)");
  const list = new AmendOptions(lists);
  const { format, backingPolicy, progress = false, quiet = false } = options;
  const job = new AmendJob({
    path: image,
    amendment: list.amendment(),
    size: list.size("size"),
    open: { format, backingPolicy, ...secretsOf(options) },
    warn: printNote,
  });
  try {
    const signal = await runLongWork(job, { progress: progress && !quiet });
    if (signal === undefined) return;
    printMessage(printable(`${image}: stopped; it is a valid image, not all is amended`));
    process.exitCode = signalStatus(signal);
  } finally {
    job.close();
  }
}
