/** `tsimgfs info`: what an image is, in the fields and the form of qemu-img info. */

import { describeChain, describeImage, type ImageDescription } from "../../block/describe-image.ts";
import { jsonSnapshot } from "../../block/snapshot-json.ts";
import { printable } from "../../errors.ts";
import type { FormatName, JsonValue } from "../../formats/driver.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { fieldLines } from "../field-lines.ts";
import { forceShareOption, formatOption, type Output, outputOption } from "../options.ts";
import { print } from "../print.ts";
import { sizeText } from "../size-text.ts";
import { snapshotTable } from "../snapshot-list.ts";

interface InfoOptions {
  readonly format?: FormatName;
  readonly output: Output;
  readonly backingChain?: boolean;
  readonly forceShare?: boolean;
}

export function defineInfo(command: DocumentedCommand): void {
  command
    .description(
      "Show the format, sizes, backing file and snapshots of an image, as qemu-img info does.",
    )
    .argument("<image>")
    .addOption(outputOption())
    .addOption(formatOption("-f, --format <name>"))
    .option("--backing-chain", "show the backing files too")
    .addOption(forceShareOption())
    .document({
      examples: [
        ["An image and its backing files", "tsimgfs info --backing-chain overlay.qcow2"],
        ["The same for a program", "tsimgfs info --output json --backing-chain overlay.qcow2"],
      ],
      seeAlso: ["map", "stats", "check", "qemu-img(1)"],
    })
    .action(showInfo);
}

function showInfo(
  image: string,
  { format, output, backingChain = false, forceShare = false }: InfoOptions,
): void {
  const options = { format, forceShare };
  const images = backingChain ? describeChain(image, options) : [describeImage(image, options)];
  if (output === "human") {
    print(images.map(humanInfo).join("\n"));
    return;
  }
  const objects = images.map(jsonInfo);
  print(`${JSON.stringify(backingChain ? objects : objects[0], null, 4)}\n`);
}

function jsonInfo(image: ImageDescription): Record<string, JsonValue> {
  const info: Record<string, JsonValue> = {
    "virtual-size": image.virtualSize,
    filename: image.path,
    format: image.format,
    "actual-size": image.allocatedSize,
  };
  if (image.clusterSize !== undefined) info["cluster-size"] = image.clusterSize;
  if (image.encrypted) info["encrypted"] = true;
  if (image.backingFile !== undefined) info["backing-filename"] = image.backingFile.name;
  if (image.fullBackingName !== undefined) info["full-backing-filename"] = image.fullBackingName;
  if (image.backingFile?.format !== undefined)
    info["backing-filename-format"] = image.backingFile.format;
  if (image.snapshots.length > 0) info["snapshots"] = image.snapshots.map(jsonSnapshot);
  if (image.specific !== undefined) info["format-specific"] = image.specific;
  info["dirty-flag"] = image.dirty;
  return info;
}

function humanInfo(image: ImageDescription): string {
  const lines = [
    `image: ${printable(image.path)}`,
    `file format: ${image.format}`,
    `virtual size: ${sizeText(image.virtualSize)} (${image.virtualSize} bytes)`,
    `disk size: ${sizeText(image.allocatedSize)}`,
  ];
  if (image.encrypted) lines.push("encrypted: yes");
  if (image.clusterSize !== undefined) lines.push(`cluster_size: ${image.clusterSize}`);
  if (image.dirty) lines.push("cleanly shut down: no");
  if (image.backingFile !== undefined) {
    const { name, format } = image.backingFile;
    const full = image.fullBackingName;
    const actual = full === undefined || full === name ? "" : ` (actual path: ${printable(full)})`;
    lines.push(`backing file: ${printable(name)}${actual}`);
    if (format !== undefined) lines.push(`backing file format: ${printable(format)}`);
  }
  if (image.snapshots.length > 0) lines.push(...snapshotTable(image.snapshots));
  const data = image.specific?.["data"];
  if (data !== undefined) lines.push("Format specific information:", ...fieldLines(data, 1));
  return `${lines.join("\n")}\n`;
}
