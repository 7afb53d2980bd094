// The examples of a page of docs/: its indented blocks, as they stand there.
import { readFileSync } from 'node:fs'
import path from 'node:path'

// Returns the blocks' texts without their indentation.
export function examples(page) {
  const blocks = []
  let inside = false
  for (const line of readFileSync(path.resolve(import.meta.dirname, '../docs', page), 'utf8').split('\n')) {
    const indented = line.startsWith('    ')
    if (indented && inside) blocks[blocks.length - 1] += `\n${line.slice(4)}`
    else if (indented) blocks.push(line.slice(4))
    inside = indented
  }
  return blocks
}

// Commands of a block for a shell, without their comments; a backslash continues a line.
export const commands = (block) =>
  block.replace(/\\\n/g, ' ').split('\n').map((l) => l.replace(/\s{2,}#.*$/, '').trim()).filter((l) => l !== '')
