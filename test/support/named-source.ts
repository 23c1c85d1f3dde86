// What a document calls by name in the source: files, folders, identifiers.

import { REPOSITORY } from "./repository.ts";
import { run } from "./run.ts";

const FOLDERS = ["src", "test", "native-notes", "mount-scripts"];

/** A file, as a path or the end of one, or a folder. */
const PATH = /^(?:(?:src|test|native-notes|mount-scripts)\/[\w./-]*|[\w./-]+\.ts|\w+\/writer\/)$/;

/** A name of more than one word, alone or with parameters. */
const IDENTIFIER = /^([A-Z]+_[A-Z_]+|[A-Za-z]*[a-z][A-Z]\w*)(?=\(|$)/;

async function output(command: string, args: readonly string[]): Promise<string> {
  return (await run(command, args, { cwd: REPOSITORY })).stdout;
}

/** Names in a Markdown document that the source has not. */
export async function namesNotInSource(markdown: string): Promise<string[]> {
  const paths = (await output("find", FOLDERS)).split("\n").map((path) => `/${path}`);
  const sources = ["src", "test", "biome.json"];
  const found = await output("grep", ["-rhoE", "\\b[A-Za-z_]{4,}\\b", ...sources]);
  const identifiers = new Set(found.split("\n"));
  const isThere = (span: string): boolean => {
    if (PATH.test(span)) {
      const end = `/${span.replace(/\/$/, "")}`;
      return paths.some((path) => path.endsWith(end));
    }
    const identifier = IDENTIFIER.exec(span)?.[1];
    return identifier === undefined || identifiers.has(identifier);
  };
  return [...markdown.matchAll(/`([^`\n]+)`/g)]
    .map(([, span = ""]) => span)
    .filter((span) => !isThere(span));
}
