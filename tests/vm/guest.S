// Where the 64-bit boot protocol enters: 0x200 behind the kernel's beginning, with the zero page's address in rsi.
	.section .start, "ax"
	.code64
	.skip 0x200
	.globl _start
_start:
	leaq	stack_end(%rip), %rsp
	movq	%rsi, %rdi
	call	run
1:	pause
	jmp	1b

	.section .bss
	.balign	16
	.skip	8192
stack_end:
	.section .note.GNU-stack, "", @progbits
