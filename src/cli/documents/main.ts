/** Writes the man pages and the completions into a directory; the build runs it. */

import fs from "node:fs";
import { join } from "node:path";
import { pageName } from "../help-text.ts";
import { buildProgram } from "../program.ts";
import { bashCompletion } from "./bash-completion.ts";
import { completedProgram } from "./completion-model.ts";
import { fishCompletion } from "./fish-completion.ts";
import { manPage } from "./man-page.ts";
import { zshCompletion } from "./zsh-completion.ts";

const MS_PER_SECOND = 1000;

/** Of the sources, if the builder says so, that builds can be repeated; else today. */
function editionDate(): string {
  const epoch = process.env["SOURCE_DATE_EPOCH"];
  const date = epoch === undefined ? new Date() : new Date(Number(epoch) * MS_PER_SECOND);
  return date.toISOString().slice(0, "YYYY-MM-DD".length);
}

async function main(directory: string): Promise<void> {
  const program = await buildProgram(() => true, undefined);
  const edition = { date: editionDate(), version: program.version() ?? "" };
  const man = join(directory, "man");
  fs.mkdirSync(man, { recursive: true });
  for (const command of [program, ...program.documentedCommands]) {
    fs.writeFileSync(join(man, `${pageName(command)}.1`), manPage(command, edition));
  }
  const completions = join(directory, "completions");
  fs.mkdirSync(completions, { recursive: true });
  const completed = completedProgram(program);
  fs.writeFileSync(join(completions, "tsimgfs.bash"), bashCompletion(completed));
  fs.writeFileSync(join(completions, "_tsimgfs"), zshCompletion(completed));
  fs.writeFileSync(join(completions, "tsimgfs.fish"), fishCompletion(completed));
}

void main(process.argv[2] ?? ".");
